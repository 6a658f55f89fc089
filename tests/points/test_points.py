"""Point files, rigid alignment from moments against SciPy and SimpleITK, closest points."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation
from torch import Tensor

from ppir_torch.errors import ConfigError, PpirError
from ppir_torch.grids import Grid
from ppir_torch.metrics.registration import target_registration_error
from ppir_torch.points.closest import iterate_closest_points
from ppir_torch.points.files import load_points
from ppir_torch.points.rigid import check_spread, registered_rms, rigid_from_moments, rigid_from_points
from ppir_torch.transforms import affine_from_map


def random_points(dimension: int, count: int = 30, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([30.0, 20.0, 10.0], dtype=torch.float64)[:dimension]
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64) * spread + 50


def random_rotation(dimension: int, seed: int = 0) -> Tensor:
    if dimension == 2:
        angle = 0.7 + seed
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        return torch.tensor(turn, dtype=torch.float64)
    return torch.from_numpy(Rotation.random(random_state=seed).as_matrix())


def noisy_pair(dimension: int, noise: float = 2.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    fixed = random_points(dimension)
    moved = scale * fixed @ random_rotation(dimension).T + torch.arange(dimension) * 10.0
    return fixed, moved + noise * random_points(dimension, seed=1) / 30


@pytest.mark.parametrize("scale", [1.0, 1.7, 0.4])
def test_an_exact_pose_is_found(dimension: int, scale: float) -> None:
    fixed, turn = random_points(dimension), random_rotation(dimension)
    moving = scale * fixed @ turn.T + 7
    matrix, offset = rigid_from_points(fixed, moving, with_scale=scale != 1)
    torch.testing.assert_close(matrix, scale * turn, rtol=0, atol=1e-12)
    torch.testing.assert_close(offset, torch.full((dimension,), 7.0, dtype=torch.float64), rtol=0, atol=1e-10)
    transform = affine_from_map(Grid((4,) * dimension), matrix, offset)
    assert float(target_registration_error(transform, fixed, moving).max()) < 1e-10


def test_moments_of_either_dtype_give_the_rotation_of_scipy(dimension: int, dtype: torch.dtype) -> None:
    fixed, moving = noisy_pair(dimension)
    q, z = moving - moving.mean(0), fixed - fixed.mean(0)
    matrix, offset = rigid_from_moments((q.T @ z).to(dtype), moving.mean(0).to(dtype), fixed.mean(0).to(dtype))
    in_space = [np.pad(points.numpy(), ((0, 0), (0, 3 - dimension))) for points in (q, z)]
    expected = Rotation.align_vectors(*in_space)[0].as_matrix()[:dimension, :dimension]
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert matrix.dtype == offset.dtype == torch.float64
    torch.testing.assert_close(matrix, torch.from_numpy(expected), rtol=0, atol=tolerance)
    torch.testing.assert_close(matrix @ fixed.mean(0) + offset, moving.mean(0), rtol=0, atol=tolerance * 100)


def test_rigid_alignment_is_simpleitks_landmark_initialiser(dimension: int) -> None:
    fixed, moving = noisy_pair(dimension)
    start = sitk.Euler2DTransform() if dimension == 2 else sitk.VersorRigid3DTransform()
    oracle = sitk.LandmarkBasedTransformInitializer(start, fixed.flatten().tolist(), moving.flatten().tolist())
    matrix, offset = rigid_from_points(fixed, moving)
    for point in fixed[:7]:
        expected = torch.tensor(oracle.TransformPoint(point.tolist()), dtype=torch.float64)
        torch.testing.assert_close(matrix @ point + offset, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("with_scale", [False, True], ids=["rigid", "similarity"])
def test_no_pose_nearby_is_better(dimension: int, with_scale: bool) -> None:
    fixed, moving = noisy_pair(dimension, noise=6.0, scale=1.3 if with_scale else 1.0)
    matrix, offset = rigid_from_points(fixed, moving, with_scale)
    scale = float(torch.det(matrix)) ** (1 / dimension)

    def cost(m: Tensor, b: Tensor) -> float:
        """Distances in the fixed points' space, where the scale is least squares; a rotation keeps them."""
        return float((fixed - torch.linalg.solve(m, (moving - b).T).T).square().sum())

    best = cost(matrix, offset)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        skew = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64) * 1e-3
        turn = torch.linalg.matrix_exp(skew - skew.T)
        factor = 1 + 1e-3 * float(torch.randn((), generator=generator)) if with_scale else 1.0
        shift = 1e-3 * torch.randn(dimension, generator=generator, dtype=torch.float64)
        nearby = factor * turn @ matrix
        assert cost(nearby, offset + shift + (matrix - nearby) @ fixed.mean(0)) > best
    assert (abs(scale - 1) < 1e-12) != with_scale


def test_a_mirrored_set_gets_a_rotation_never_a_reflection(dimension: int) -> None:
    fixed = random_points(dimension)
    mirrored = fixed.clone()
    mirrored[:, -1] = -mirrored[:, -1]
    matrix, _ = rigid_from_points(fixed, mirrored)
    identity = torch.eye(dimension, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-12)
    assert float(torch.det(matrix)) == pytest.approx(1, abs=1e-12)
    # SVD without the sign would give the mirror itself.
    q, z = mirrored - mirrored.mean(0), fixed - fixed.mean(0)
    left, _, right = torch.linalg.svd(q.T @ z)
    assert float(torch.det(left @ right)) == pytest.approx(-1)


def test_planar_points_have_a_rotation_in_3d() -> None:
    fixed, turn = random_points(3), random_rotation(3)
    fixed[:, 2] = 4.0
    matrix, _ = rigid_from_points(fixed, fixed @ turn.T)
    torch.testing.assert_close(matrix, turn, rtol=0, atol=1e-10)


def test_points_that_leave_the_rotation_open_are_refused() -> None:
    line = torch.outer(torch.linspace(0, 9, 8, dtype=torch.float64), torch.tensor([1.0, 2.0, -1.0]).double())
    with pytest.raises(ConfigError, match="rotation is not determined"):
        rigid_from_points(line, line + 1)
    with pytest.raises(ConfigError, match="rotation is not determined"):
        rigid_from_points(torch.ones(5, 2), torch.ones(5, 2))
    circle = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    with pytest.raises(ConfigError, match="mirror"):
        rigid_from_points(circle, circle * torch.tensor([1.0, -1.0]))
    matrix, _ = rigid_from_points(line[:, :2], line[:, :2])  # a line is enough in 2-D
    torch.testing.assert_close(matrix, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("digits", [1, 3, 6, 15])
def test_a_line_of_rounded_numbers_is_a_line(digits: int) -> None:
    """Rounding gives it a thickness, and that a rotation which means nothing."""
    way = torch.tensor([1.0, 2.3333333, 0.7777777], dtype=torch.float64)
    line = (torch.outer(torch.arange(24.0, dtype=torch.float64) * 200, way) + 3).round(decimals=digits)
    with pytest.raises(ConfigError, match="all on one line; their rotation is not determined"):
        check_spread(line, "points")
    check_spread(line[:, :2], "points")  # a line is enough in 2-D
    check_spread(line + torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3, "it")
    with pytest.raises(ConfigError, match="all in one place"):
        check_spread(torch.full((9, 3), 123.456), "points")


@pytest.mark.parametrize("with_scale", [False, True], ids=["rigid", "similarity"])
def test_rms_from_moments_is_that_of_the_points(dimension: int, with_scale: bool) -> None:
    fixed, moving = noisy_pair(dimension, scale=1.2)
    q, z = moving - moving.mean(0), fixed - fixed.mean(0)
    matrix, offset = rigid_from_points(fixed, moving, with_scale)
    expected = float((moving - fixed @ matrix.T - offset).square().sum(1).mean().sqrt())
    assert expected > 0.5
    found = registered_rms(matrix, q.T @ z, float(q.square().sum()), float(z.square().sum()), len(fixed))
    assert found == pytest.approx(expected, rel=1e-10)


def test_similarity_leaves_what_scipys_procrustes_says(dimension: int) -> None:
    fixed, moving = noisy_pair(dimension, noise=4.0, scale=1.5)
    disparity = procrustes(moving.numpy(), fixed.numpy())[2]
    q = moving - moving.mean(0)
    matrix, offset = rigid_from_points(fixed, moving, with_scale=True)
    rest = float((moving - fixed @ matrix.T - offset).square().sum() / q.square().sum())
    assert rest == pytest.approx(disparity / (1 - disparity), rel=1e-9)  # its residual, seen from the other space


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cross": torch.eye(4)}, "2-D or 3-D"),
        ({"cross": torch.ones(2, 3)}, r"\(2, 3\)"),
        ({"moving_centre": torch.zeros(3)}, "centres"),
        ({"fixed_centre": torch.zeros(1)}, "centres"),
        ({"cross": torch.full((2, 2), math.nan)}, "NaN"),
        ({"fixed_centre": torch.tensor([math.inf, 0])}, "NaN or infinite"),
        ({"with_scale": True}, "moving variance None"),
        ({"with_scale": True, "moving_variance": 0.0}, "moving variance 0"),
        ({"with_scale": True, "moving_variance": math.nan}, "moving variance nan"),
    ],
)
def test_bad_moments_are_refused(changes: dict[str, object], said: str) -> None:
    good = {"cross": torch.eye(2), "moving_centre": torch.zeros(2), "fixed_centre": torch.zeros(2)}
    with pytest.raises(ConfigError, match=said):
        rigid_from_moments(**{**good, **changes})  # type: ignore[arg-type]


@given(seed=st.integers(0, 2**16), dimension=st.sampled_from([2, 3]), scale=st.floats(1e-3, 1e3))
def test_alignment_follows_the_moving_points(seed: int, dimension: int, scale: float) -> None:
    fixed, moving = random_points(dimension, seed=seed), random_points(dimension, seed=seed + 1)
    turn = random_rotation(dimension, seed)
    matrix, offset = rigid_from_points(fixed, moving, with_scale=True)
    turned, turned_offset = rigid_from_points(fixed, scale * moving @ turn.T + 5, with_scale=True)
    size = scale * float(matrix.abs().max())
    torch.testing.assert_close(turned, scale * turn @ matrix, rtol=0, atol=1e-7 * size)
    expected = scale * turn @ offset + 5
    torch.testing.assert_close(turned_offset, expected, rtol=0, atol=1e-5 * size + 1e-9)
    assert float(torch.det(turned)) > 0


def test_closest_points_find_a_small_pose_without_the_order(dimension: int) -> None:
    fixed = random_points(dimension, 400)
    skew = torch.zeros(dimension, dimension, dtype=torch.float64)
    skew[1, 0], skew[0, 1] = 0.02, -0.02
    turn = torch.linalg.matrix_exp(skew)
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    moving = (fixed @ turn.T + 0.2)[shuffled]
    matrix, offset, rms = iterate_closest_points(fixed, moving)
    torch.testing.assert_close(matrix, turn, rtol=0, atol=1e-9)
    torch.testing.assert_close(offset, torch.full((dimension,), 0.2, dtype=torch.float64), rtol=0, atol=1e-7)
    assert rms < 1e-9


def test_closest_points_never_get_farther_and_keep_a_good_start(dimension: int) -> None:
    fixed, moving = random_points(dimension, 60), random_points(dimension, 50, seed=3)
    distances = [iterate_closest_points(fixed, moving, iterations=n)[2] for n in range(8)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(distances))
    assert distances[0] > distances[-1]
    turn = random_rotation(dimension)
    start = (turn, torch.ones(dimension, dtype=torch.float64))
    matrix, _, rms = iterate_closest_points(fixed, fixed @ turn.T + 1, start)
    assert rms < 1e-12
    torch.testing.assert_close(matrix, turn, rtol=0, atol=1e-12)


def test_closest_points_refuse_what_does_not_go_together() -> None:
    for fixed, moving in ((torch.rand(5, 2), torch.rand(5, 3)), (torch.rand(2, 2), torch.rand(5, 2))):
        with pytest.raises(ConfigError, match="point sets"):
            iterate_closest_points(fixed, moving)


def as_csv(points: Tensor) -> str:
    return ",".join("xyz"[: points.shape[1]]) + "\n" + as_lines(points, ",")


def as_lines(points: Tensor, between: str) -> str:
    return "".join(between.join(repr(v) for v in row) + "\n" for row in points.tolist())


def as_bytes(points: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, points.numpy())
    return stream.getvalue()


FORMATS: dict[str, Callable[[Tensor], str | bytes]] = {
    "header.csv": as_csv,
    "bare.CSV": lambda p: as_lines(p, ", "),
    "plain.txt": lambda p: "# mm\n" + as_lines(p, " ") + "\n",
    "elastix.txt": lambda p: f"point\n{len(p)}\n" + as_lines(p, " "),
    "array.npy": as_bytes,
}


@pytest.mark.parametrize("name", FORMATS)
def test_points_come_back_from_every_format(name: str, dimension: int, tmp_path: Path) -> None:
    points, said = random_points(dimension), FORMATS[name](random_points(dimension))
    (tmp_path / name).write_bytes(said if isinstance(said, bytes) else said.encode())
    loaded = load_points(tmp_path / name)
    assert loaded.dtype == torch.float64
    assert torch.equal(loaded, points)


SLICER = """# Markups fiducial file version = 4.11
# CoordinateSystem = {system}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
"""


@pytest.mark.parametrize(("system", "sign"), [("LPS", 1), ("RAS", -1), ("1", 1), ("0", -1)])
def test_slicers_points_become_lps(system: str, sign: int, tmp_path: Path) -> None:
    points = random_points(3)
    rows = "".join(
        f'{i},{x!r},{y!r},{z!r},0,0,0,1,1,1,0,F-{i},"a, b",\n' for i, (x, y, z) in enumerate(points.tolist())
    )
    (tmp_path / "a.fcsv").write_text(SLICER.format(system=system) + rows)
    markups = {"coordinateSystem": system, "controlPoints": [{"id": "1", "position": p} for p in points.tolist()]}
    (tmp_path / "a.mrk.json").write_text(json.dumps({"markups": [{"type": "Fiducial", **markups}]}))
    expected = points * torch.tensor([sign, sign, 1])
    assert torch.equal(load_points(tmp_path / "a.fcsv"), expected)
    assert torch.equal(load_points(tmp_path / "a.mrk.json"), expected)


def test_named_columns_are_taken_in_the_order_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,row,col\na,1,2\nb,3,4\nc,5,7\n")
    assert load_points(tmp_path / "p.csv", ("col", "row")).tolist() == [[2, 1], [4, 3], [7, 5]]
    with pytest.raises(ConfigError, match="columns id, row, col; x, y"):
        load_points(tmp_path / "p.csv")
    with pytest.raises(ConfigError, match="names of those"):
        load_points(tmp_path / "p.csv", ("col", "line"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.vtk", "", "unknown kind"),
        ("p.csv", "", "0 points"),
        ("p.csv", "x,y\n", "0 points"),
        ("p.csv", "x,y\n1,2\n3,4\n", "2 points"),
        ("p.csv", "x,y,z\n1,2,3\n3,4,5\n5,6,7\n", "3 points"),
        ("p.csv", "x,y\n1,2\n3,nan\n5,6\n", "point 2 is NaN or infinite"),
        ("p.csv", "x,y\n1,2\n3,4\n5,1e999\n", "point 3 is NaN or infinite"),
        ("p.csv", "x,y\n1,2\n3,four\n5,6\n", "point 2: '3,four' is not read"),
        ("p.csv", "x,y\n1,2\n3\n5,6\n", "point 2: '3'"),
        ("p.csv", "1,2\n3,4,5\n5,6\n", "2, 3 numbers a point"),
        ("p.csv", "1,2,3,4\n" * 9, "4 numbers a point"),
        ("p.csv", "x,x,y\n1,2,3\n", "x, y"),
        ("p.csv", "x,z\n1,2\n", "x, y"),
        ("p.txt", "1\n2\n3\n", "1 numbers a point"),
        ("p.txt", "index\n1\n2 3\n", "voxel indices"),
        ("p.txt", "point\n4\n1 2\n3 4\n4 5\n", "must say that it has 3"),
        ("p.fcsv", "1,2,3\n", "no line '# columns = '"),
        ("p.fcsv", SLICER.format(system="IJK") + "a,1,2,3\n", "'IJK', LPS or RAS"),
        ("p.mrk.json", "{", "cannot be read as points"),
        ("p.mrk.json", "[]", "cannot be read as points"),
        (
            "p.mrk.json",
            '{"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"positionStatus": "undefined"}]}]}',
            "not placed",
        ),
        ("p.npy", "no array", "cannot be read as points"),
    ],
)
def test_bad_files_are_refused_in_one_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_points(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_more_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_points(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_points(tmp_path / "folder.csv")
    np.save(tmp_path / "flat.npy", np.zeros(9))
    np.save(tmp_path / "objects.npy", np.array([[object(), 1]] * 5), allow_pickle=True)
    for name, said in (("flat.npy", r"\(9,\)"), ("objects.npy", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            load_points(tmp_path / name)
    (tmp_path / "bare.csv").write_text("1,2\n3,4\n5,7\n")
    with pytest.raises(ConfigError, match="no header"):
        load_points(tmp_path / "bare.csv", ("x", "y"))
    with pytest.raises(ConfigError, match=r"only a \.csv"):
        load_points(tmp_path / "bare.txt", ("x", "y"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=60) | st.text("xyz,0123456789.-e\n#pt", max_size=60).map(str.encode))
@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.fcsv", "p.mrk.json", "p.npy"])
def test_any_content_is_points_or_one_clear_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        points = load_points(tmp_path / name)
    except PpirError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert points.shape[1] in (2, 3)
        assert bool(torch.isfinite(points).all())


def test_corpus_callosum_closest_points_end_where_the_card_says(shared_data: Path) -> None:
    folder = shared_data / "11_points2d_corpus_callosum"
    known = json.loads((folder / "11_points2d_corpus_callosum.json").read_text())["known"]
    # The card's alignment maps points1 to points2, in (row, col), which turns the other way.
    fixed, moving = (load_points(folder / f"points{number}.csv", ("col", "row")) for number in (1, 2))
    assert (len(fixed), len(moving)) == (201, 193)

    def mean_nearest(points: Tensor) -> float:
        return float(torch.cdist(points, moving).min(1).values.mean())

    start = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    matrix, offset, rms = iterate_closest_points(fixed, moving, start)
    mapped = fixed @ matrix.T + offset
    assert mean_nearest(fixed) == pytest.approx(known["mean_nn_distance_identity"], abs=5e-4)
    assert mean_nearest(mapped) == pytest.approx(known["mean_nn_distance_after_rigid_ICP"], abs=5e-4)
    assert math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])) == pytest.approx(3.68, abs=0.005)
    assert rms == pytest.approx(float(torch.cdist(mapped, moving).min(1).values.square().mean().sqrt()), rel=1e-6)


@pytest.mark.parametrize("case", [1, 2, 3])
def test_lung_keypoints_align_as_scipys(case: int, shared_data: Path) -> None:
    folder = shared_data / "13_points3d_lung_keypoints"
    path = folder / f"case_{case:03d}.csv"
    fixed, moving = (load_points(path, tuple(f"{side}_{axis}" for axis in "xyz")) for side in ("fixed", "moving"))
    known = json.loads((folder / "13_points3d_lung_keypoints.json").read_text())["known"]
    apart = float((fixed - moving).norm(dim=1).mean())
    assert apart == pytest.approx(known["mean_distance_identity_vox"][str(case)], rel=1e-9)
    with path.open(newline="") as stream:
        assert len(fixed) == len(list(csv.DictReader(stream)))
    matrix, offset = rigid_from_points(fixed, moving)
    q, z = (moving - moving.mean(0)).numpy(), (fixed - fixed.mean(0)).numpy()
    oracle, distance = Rotation.align_vectors(q, z)
    torch.testing.assert_close(matrix, torch.from_numpy(oracle.as_matrix()), rtol=0, atol=1e-10)
    left = (moving - fixed @ matrix.T - offset).norm(dim=1)
    assert float(left.square().sum().sqrt()) == pytest.approx(distance, rel=1e-9)
    assert float(left.mean()) < 0.8 * apart
    cross = torch.from_numpy(q.T @ z)
    rms = registered_rms(matrix, cross, float((q**2).sum()), float((z**2).sum()), len(fixed))
    assert rms == pytest.approx(float(left.square().mean().sqrt()), rel=1e-9)
