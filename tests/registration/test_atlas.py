"""The start through a public template: a phantom's known transforms are the oracle, clear and private."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from joint.ends import private_fixed

from ppir_torch import register
from ppir_torch.config.images import fixed_party, load_config, moving_party
from ppir_torch.errors import BudgetExceeded, ConfigError, ImageError, PeerLost
from ppir_torch.images import Image, save_image
from ppir_torch.metrics.registration import displacement_rmse, foreground_points
from ppir_torch.parties.fixed import FixedParty
from ppir_torch.registration.atlas import load_atlas, through_atlas, to_atlas
from ppir_torch.runs.disclosed import disclosed_of_images
from ppir_torch.wire.messages import Geometry

Make = Callable[..., Any]
CLOSE_MM = 0.15  # voxels are 1.5 to 2 mm, and two maps compose


@pytest.fixture(scope="module")
def trio(pair: Make) -> Callable[[int], tuple[Any, Image]]:
    """A pair with a known transform, and a template: the same phantom on the moving image's grid, brighter."""

    def make(dimension: int) -> tuple[Any, Image]:
        images = pair("affine", dimension)
        atlas = images.phantom.image(images.moving.grid)
        return images, Image(3 * atlas.tensor + 20, atlas.grid)

    return make


def test_two_maps_to_a_template_compose_to_the_known_transform(dimension: int, trio: Make) -> None:
    images, atlas = trio(dimension)
    found = through_atlas(to_atlas(images.moving, atlas), to_atlas(images.fixed, atlas), images.fixed.grid)
    assert displacement_rmse(found, images.truth, foreground_points(images.fixed)) < CLOSE_MM


def test_a_template_of_something_else_is_refused(dimension: int, trio: Make) -> None:
    images, atlas = trio(dimension)
    noise = torch.randn(atlas.tensor.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ImageError, match="start: atlas, the template explains"):
        to_atlas(images.moving, Image(noise, atlas.grid))


def test_a_template_of_another_dimension_is_refused(trio: Make) -> None:
    with pytest.raises(ImageError, match="start: atlas is 3-D, the image 2-D"):
        to_atlas(trio(2)[0].moving, trio(3)[1])


def test_a_map_that_cannot_be_inverted_is_refused(trio: Make) -> None:
    images, atlas = trio(2)
    own = to_atlas(images.moving, atlas)
    flat = to_atlas(images.moving, atlas)
    flat.set_affine_map(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ConfigError, match="cannot be inverted"):
        through_atlas(own, flat, images.fixed.grid)


def files(folder: Path, images: Any, atlas: Image) -> dict[str, str]:
    paths = {}
    for name, image in (("moving", images.moving), ("fixed", images.fixed), ("atlas", atlas)):
        paths[name] = str(folder / f"{name}.mha")
        save_image(image, paths[name])
    return paths


def settings(paths: dict[str, str], backend: str, **data: Any) -> dict[str, Any]:
    return {
        "data": {"moving": paths["moving"], "fixed": paths["fixed"], **data},
        "start": {"kind": "atlas", "path": paths["atlas"]},
        "backend": {"kind": backend},
    }


def test_a_private_run_starts_there_as_the_clear_one_does(trio: Make, tmp_path: Path) -> None:
    images, atlas = trio(2)
    paths = files(tmp_path, images, atlas)
    clear = register(config=settings(paths, "clear"))
    told = {"disclose_atlas_map": True}
    budget = {"budget": {"file": str(tmp_path / "releases.sqlite"), "max_values": 100_000}}
    private = register(config=settings(paths, "beaver", **told) | budget)
    first = [result.history[0].iteration.value for result in (clear, private)]
    assert first[0] == pytest.approx(first[1], abs=1e-3 * float(images.fixed.tensor.var()))
    points = foreground_points(images.fixed)
    assert displacement_rmse(private.transform, clear.transform, points) < 0.01


def test_what_is_told_of_the_map_is_charged_before_it_is_told(trio: Make) -> None:
    images, atlas = trio(2)
    charged: list[tuple[int, str]] = []
    party = FixedParty(
        images.fixed,
        atlas_map=to_atlas(images.fixed, atlas),
        charge=lambda count, kind: charged.append((count, kind)),
    )
    with private_fixed("beaver", party) as source:
        assert charged == [(6, "atlas")]
        told = torch.cat([part.detach().flatten() for part in source.atlas_map().affine_map()])
    own = torch.cat([part.detach().flatten() for part in party.atlas_map.affine_map()])  # type: ignore[union-attr]
    assert torch.allclose(told, own)

    def refuse(count: int, kind: str) -> None:
        raise BudgetExceeded(f"{count} of {kind}")

    unwilling = FixedParty(images.fixed, atlas_map=party.atlas_map, charge=refuse)
    with pytest.raises((BudgetExceeded, PeerLost)), private_fixed("beaver", unwilling):
        pass


def test_without_consent_there_is_no_such_start(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("moving", "fixed", "atlas")}
    with pytest.raises(ConfigError, match=r"start\.kind: 'atlas', with backend 'bfv' .* data\.disclose_atlas_map=true"):
        load_config(settings(paths, "bfv"))
    agreed = load_config(settings(paths, "bfv", disclose_atlas_map=True))
    assert any("atlas" in line for line in disclosed_of_images(agreed)["party_1"])
    assert fixed_party(agreed).disclose_atlas_map
    assert "fixed" not in moving_party(agreed).model_dump()


def test_the_map_survives_its_message(dimension: int) -> None:
    d = dimension
    numbers = tuple(float(n) / 7 for n in range(d * (d + 1)))
    told = Geometry((8,) * d, (1.0,) * d, (0.0,) * d, tuple(torch.eye(d).flatten().tolist()), atlas_map=numbers)
    assert Geometry.decode(b"".join(told.encode())).atlas_map == numbers


def test_a_file_is_the_template(trio: Make, tmp_path: Path) -> None:
    images, atlas = trio(2)
    paths = files(tmp_path, images, atlas)
    assert torch.equal(load_atlas(Path(paths["atlas"])).tensor, atlas.tensor)
