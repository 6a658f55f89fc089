"""No party can see the other's file, and everything that crosses a wire is a declared message without pixels in it.

The runs here are the user's: `run`, with interpreters of their own. Only what surrounds a party changes: a mount
namespace in which the other site's folder is empty, and a tap in each wire.
"""

from __future__ import annotations

import functools
import json
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from parties.harness import HEADER, TAG_SIZE, Files, Started, Tapped, Taps, parse, started_parties, tapped_wires
from torch import Tensor

from ppir_torch.config.images import fixed_party
from ppir_torch.images import Image, Level, load_image
from ppir_torch.joint.bounds import Pairs
from ppir_torch.joint.columns import IMAGE, Columns, columns_of
from ppir_torch.joint.quantise import quantise_columns
from ppir_torch.losses import SSD
from ppir_torch.metrics.registration import displacement_rmse
from ppir_torch.parties.given import Given
from ppir_torch.registration import ClearFixed, OperandRequest
from ppir_torch.runs import processes as launch
from ppir_torch.runs.images import run
from ppir_torch.transforms import Affine, load_transform
from ppir_torch.transport import LinkEnd
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair
from ppir_torch.wire.payload import pack, unpack

LEVELS = (Level(2, 0.0), Level(1, 0.0))

# Every kind that may cross, by protocol and direction. A new kind needs a place here.
SESSION_1, SESSION_2 = (
    {MessageKind.HELLO, MessageKind.LEVEL, MessageKind.FINISH},
    {MessageKind.HELLO, MessageKind.GEOMETRY, MessageKind.OPERAND},
)
ALLOWED: dict[str, dict[tuple[str, str], set[MessageKind]]] = {
    "bfv": {
        ("party_1", "party_2"): SESSION_1 | {MessageKind.REPLY_CIPHERTEXTS},
        ("party_2", "party_1"): SESSION_2
        | {MessageKind.PUBLIC_KEY, MessageKind.OPERAND_CIPHERTEXTS, MessageKind.MASKED_RESULT},
    },
    "ckks": {
        ("party_1", "party_2"): SESSION_1 | {MessageKind.REPLY_CIPHERTEXTS},
        ("party_2", "party_1"): SESSION_2
        | {MessageKind.PUBLIC_KEY, MessageKind.OPERAND_CIPHERTEXTS, MessageKind.MASKED_RESULT},
    },
    "spdz": {
        ("party_1", "party_2"): SESSION_1 | {MessageKind.PRODUCT, MessageKind.OPENING},
        ("party_2", "party_1"): SESSION_2 | {MessageKind.ZERO_SEED, MessageKind.OPENING, MessageKind.RESULT_SHARE},
        ("party_1", "dealer"): {MessageKind.TRIPLE, MessageKind.FINISH},
        ("dealer", "party_1"): {MessageKind.SEED},
        ("party_2", "dealer"): set(),
        ("dealer", "party_2"): {MessageKind.SEED, MessageKind.TRIPLE_CORRECTION},
    },
    "beaver": {
        ("party_1", "party_2"): SESSION_1 | {MessageKind.MASKED_ROWS},
        ("party_2", "party_1"): SESSION_2 | {MessageKind.OPENED_OPERAND, MessageKind.RESULT_SHARE},
        ("party_1", "dealer"): {MessageKind.TRIPLE, MessageKind.FINISH},
        ("dealer", "party_1"): {MessageKind.SEED},
        ("party_2", "dealer"): set(),
        ("dealer", "party_2"): {MessageKind.SEED, MessageKind.TRIPLE_CORRECTION},
    },
}
# Disclosed gradient-magnitude samples; failures; several operands at once; the insecure baseline, which these tests
# would not let through; protocols from outside the package.
NOT_IN_THESE_RUNS = {
    MessageKind.OPERAND_IN_USE,
    MessageKind.EXTENSION_SET_UP,
    MessageKind.EXTENSION_REQUEST,
    MessageKind.EXTENSION_ANSWER,
    MessageKind.EXTENSION_DEALER,
    MessageKind.SAMPLE,
    MessageKind.ABORT,
    MessageKind.PUBLIC_MAP,
    MessageKind.GALOIS_KEYS,
    MessageKind.NAIVE_REPLY,
    MessageKind.NAIVE_RESULT,
}


# --- a party that cannot open the other site's folder -----------------------------------------------------------------

_HIDE = 'while [ "$1" != -- ]; do mount -t tmpfs none "$1" || exit 97; shift; done; shift; exec "$@"'


def hidden_from(command: list[str], folders: list[Path]) -> list[str]:
    """The same command in a mount namespace in which these folders are empty."""
    return [*unshare_command(), "sh", "-c", _HIDE, "sh", *map(str, folders), "--", *command]


@functools.cache
def unshare_command() -> tuple[str, ...]:
    """How mount namespaces are made here; () where they are not permitted."""
    for way in (("unshare", "--mount"), ("unshare", "--map-root-user", "--mount")):
        try:
            subprocess.run([*way, "mount", "-t", "tmpfs", "none", "/mnt"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return way
    return ()


@contextmanager
def separate_sites(files: Files) -> Iterator[None]:
    """Every party started inside finds the folder of the other site empty; the dealer both."""
    hidden = {
        "party_1": [files.fixed.parent],
        "party_2": [files.moving.parent],
        "dealer": [files.moving.parent, files.fixed.parent],
    }

    def start(command: list[str], **options: Any) -> Any:
        return subprocess.Popen(hidden_from(command, hidden[command[3]]), **options)

    names = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "TimeoutExpired")}
    with pytest.MonkeyPatch.context() as patch:
        if unshare_command():
            patch.setattr(launch, "subprocess", SimpleNamespace(Popen=start, **names))
        yield


@dataclass(frozen=True)
class Observed:
    """One run, and all that crossed."""

    files: Files
    result: dict[str, Any]
    folder: Path
    taps: Taps

    @property
    def backend(self) -> str:
        return str(self.result["backend"])


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in ("spdz", "ckks") else []) for name in ALLOWED],
)
def observed(
    request: pytest.FixtureRequest, site_files: Callable[..., Files], tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    files, folder = site_files("affine", 2), tmp_path_factory.mktemp(f"observed-{request.param}")
    with started_parties(quick=False), tapped_wires() as taps, separate_sites(files):
        result = run(files.configuration(request.param, pyramid=_pyramid()), folder)
    return Observed(files, result, folder, taps)


def _pyramid() -> dict[str, Any]:
    return {"levels": [{"shrink": level.shrink, "smoothing_mm": level.smoothing_mm} for level in LEVELS]}


def test_parties_that_cannot_see_the_other_file_end_where_the_clear_run_ends(
    observed: Observed, clear_run: Callable[..., Any]
) -> None:
    if not unshare_command():
        pytest.skip("mount namespaces are not permitted here (unshare --mount)")
    clear, folder = clear_run("affine", 2, pyramid=_pyramid())
    grid = load_image(observed.files.fixed).grid
    found, wanted = (load_transform(path / "transform.tfm", grid) for path in (observed.folder, folder))
    assert displacement_rmse(found, wanted, grid.points(dtype=torch.float64)) <= 0.01
    assert observed.result["ssd"] == pytest.approx(clear["ssd"], abs=0.01)


def test_an_interpreter_of_its_own_changes_nothing(observed: Observed, started: Started, tmp_path: Path) -> None:
    """The other tests fork their parties from a prepared process (zygote.py): bit-equal to these."""
    quick = run(observed.files.configuration(observed.backend, pyramid=_pyramid()), tmp_path)
    assert quick["transform"] == observed.result["transform"]
    assert [h["value"] for h in quick["history"]] == [h["value"] for h in observed.result["history"]]
    assert len(started) >= 2


def test_the_hidden_folder_is_hidden(site_files: Callable[..., Files], tmp_path: Path) -> None:
    """Control: party_2, asked for party_1's image, opens it; in party_2's namespace there is no such file."""
    if not unshare_command():
        pytest.skip("mount namespaces are not permitted here (unshare --mount)")
    files = site_files("affine", 2)
    config = fixed_party(Files(files.moving, files.moving, files.truth).configuration("bfv"))

    def start(name: str) -> tuple[launch.Party, socket.socket]:
        mine, theirs = socket.socketpair()
        report = tmp_path / f"{name}.json"
        settings, transport = (json.loads(part.model_dump_json()) for part in (config, config.transport))
        given = Given("images", settings, transport, {"party_1": {}}, {"party_1": secrets.token_bytes(16)})
        ends = {"party_1": LinkEnd(inherited=(theirs,))}
        return launch.Party("party_2", given, ends, secrets.token_bytes(16), report), mine

    parties = {"open": start("open")}
    with separate_sites(files):
        parties["hidden"] = start("hidden")
    reports = {}
    for name, (party, mine) in parties.items():
        mine.shutdown(socket.SHUT_WR)  # party_1 is gone: no party_2 goes on for long
        reports[name] = party.wait(120)
        mine.close()
    assert reports["hidden"].error == f"{files.moving}: no such file or folder"
    assert reports["hidden"].exit_code == 2
    assert "party_1 is gone" in reports["open"].error


# --- every byte is part of a declared message -------------------------------------------------------------------------


def test_every_byte_belongs_to_a_declared_message(observed: Observed) -> None:
    allowed, sessions = ALLOWED[observed.backend], set()
    assert set(observed.taps.streams) == set(allowed)
    for way, stream in observed.taps.streams.items():
        messages = parse(stream)
        assert [m.sequence for m in messages] == list(range(len(messages))), way
        assert {MessageKind(m.kind) for m in messages} == allowed[way], way
        sessions |= {m.session for m in messages}
        assert sum(m.size for m in messages) == len(stream)
    assert len(sessions) == 1


def test_bytes_on_the_wires_are_the_bytes_accounted_for(observed: Observed) -> None:
    for role in ("party_1", "party_2", "dealer"):
        sent = b"".join(stream for (source, _), stream in observed.taps.streams.items() if source == role)
        received = sum(len(stream) for (_, target), stream in observed.taps.streams.items() if target == role)
        if role not in observed.result:
            assert (len(sent), received) == (0, 0)
            continue
        account = observed.result[role]
        if (observed.backend, role) == ("beaver", "party_2"):
            # The dealer's part of the product after the last one is never read.
            received -= observed.taps.messages("dealer", "party_2")[-1].size
        assert (account["bytes_sent"], account["bytes_received"]) == (len(sent), received)
        by_kind: dict[str, int] = {}
        for source, target in observed.taps.streams:
            if source == role:
                for message in observed.taps.messages(source, target):
                    name = MessageKind(message.kind).name
                    by_kind[name] = by_kind.get(name, 0) + message.size
        assert account["messages"] == by_kind


def test_every_declared_kind_has_a_place() -> None:
    used = {kind for ways in ALLOWED.values() for kinds in ways.values() for kind in kinds}
    assert used | NOT_IN_THESE_RUNS == set(MessageKind)


def test_set_up_is_once_and_products_are_once_an_iteration(observed: Observed) -> None:
    def count(source: str, target: str, *kinds: MessageKind) -> list[int]:
        messages = observed.taps.messages(source, target)
        return [sum(m.kind == kind for m in messages) for kind in kinds]

    n, levels = observed.result["iterations"], len(LEVELS)
    one, two = ("party_1", "party_2"), ("party_2", "party_1")
    assert count(*one, MessageKind.HELLO, MessageKind.LEVEL, MessageKind.FINISH) == [1, levels, 1]
    assert count(*two, MessageKind.HELLO, MessageKind.GEOMETRY, MessageKind.OPERAND) == [1, 1, levels]
    if observed.backend in ("bfv", "ckks"):
        assert count(*one, MessageKind.REPLY_CIPHERTEXTS) == count(*two, MessageKind.MASKED_RESULT) == [n]
        assert count(*two, MessageKind.PUBLIC_KEY) == [1]
        return
    triples = n
    if observed.backend == "spdz":
        assert (
            count(*one, MessageKind.PRODUCT, MessageKind.OPENING)
            == count(*two, MessageKind.RESULT_SHARE, MessageKind.OPENING)
            == [n, n]
        )
        assert count(*two, MessageKind.ZERO_SEED) == [levels]
    else:
        assert count(*one, MessageKind.MASKED_ROWS) == count(*two, MessageKind.RESULT_SHARE) == [n]
        assert count(*two, MessageKind.OPENED_OPERAND) == [levels]
        triples += levels  # made ready and not used, once a level
    assert (
        count("party_1", "dealer", MessageKind.TRIPLE)
        == count("dealer", "party_2", MessageKind.TRIPLE_CORRECTION)
        == [triples]
    )
    assert count("dealer", "party_1", MessageKind.SEED) == count("dealer", "party_2", MessageKind.SEED) == [1]


def test_plain_messages_hold_nothing_but_what_they_are_for(observed: Observed) -> None:
    """The fields of the unencrypted messages, one by one: a field that is added is a field to think about."""
    fields = {
        MessageKind.HELLO: {"version", "protocol"},
        MessageKind.GEOMETRY: {"grid", "centre_of_mass", "mask"},
        MessageKind.LEVEL: {"level", "rows", "choice", "columns", "measure", "map"},
        MessageKind.OPERAND: {
            "number",
            "points",
            "rows",
            "columns",
            "scale",
            "further_scales",
            "offset",
            "max_abs",
            "energy",
        }
        | {"sample_mean_square", "level_mean_square"}
        | {"row_bits", "group_energy"},  # of the columns' kind and the number of points, whatever J is
        MessageKind.FINISH: {"transform"},
        MessageKind.PRODUCT: {"rows", "points"},
        MessageKind.MASKED_ROWS: {"product", "rows"},
        MessageKind.TRIPLE: {"rows", "points", "columns"}
        | ({"operand", "width", "mapped"} if observed.backend == "beaver" else set()),
    }
    with_pairs = (MessageKind.PRODUCT, MessageKind.MASKED_ROWS)
    seen: dict[MessageKind, dict[str, Any]] = {}
    for way in observed.taps.streams:
        for message in observed.taps.messages(*way):
            if message.kind in fields and message.payload:
                payload = message.payload
                if message.kind == MessageKind.MASKED_ROWS:  # words follow
                    payload = payload[4 : 4 + int.from_bytes(payload[:4], "little")]
                meta, arrays = unpack(payload)
                assert set(meta) == fields[MessageKind(message.kind)]
                assert [a.dtype for a in arrays] == ([np.uint16] if message.kind in with_pairs else [])
                assert all(a.ndim == 2 and a.shape[1] == 2 and len(a) <= 7 for a in arrays), "rows and columns"
                seen[MessageKind(message.kind)] = meta
    assert seen[MessageKind.GEOMETRY] | {"grid": 0} == {"grid": 0, "centre_of_mass": None, "mask": False}
    assert set(seen[MessageKind.GEOMETRY]["grid"]) == {"size", "spacing", "origin", "direction"}
    assert seen[MessageKind.FINISH] == {"transform": None}
    assert set(seen[MessageKind.LEVEL]["level"]) == {"shrink", "smoothing_mm"}
    assert seen[MessageKind.LEVEL]["choice"] == {"kind": "full"}
    assert (seen[MessageKind.LEVEL]["measure"], seen[MessageKind.LEVEL]["map"]) == ({"kind": "ssd"}, None)
    assert set(seen[MessageKind.LEVEL]["columns"]) == {"kind", "transform", "bins", "squares"}
    assert (seen[MessageKind.OPERAND]["row_bits"], seen[MessageKind.OPERAND]["group_energy"]) == (14, 0)
    assert len(seen[MessageKind.OPERAND]["further_scales"]) == seen[MessageKind.OPERAND]["columns"] - 1


# --- no pixels in the streams -----------------------------------------------------------------------------------------


def patterns(rows: Tensor, dtype: Any) -> list[bytes]:
    """Some of each row's values as bytes of `dtype`, where they are not nearly constant."""
    found, width = [], 16 if np.dtype(dtype).itemsize == 1 else 8
    for row in rows.reshape(rows.shape[0], -1):
        values = row.numpy().astype(dtype)
        start = max(0, values.size // 2 - width // 2)
        piece = values[start : start + width]
        if len(np.unique(piece)) >= 6:
            found.append(piece.tobytes())
    return found


def quantised(image: Image, columns: Columns = IMAGE) -> Tensor:
    """(columns, [z,] y, x) as party_2's operand holds them."""
    integers, _ = quantise_columns(columns_of(image, None, None, columns), columns)
    return integers.reshape(-1, *image.grid.shape)


def forms_of(image: Image) -> Iterator[tuple[str, list[bytes]]]:
    """(name, patterns) of all forms in which an image's rows may be in memory, at every level."""
    for level in LEVELS:
        coarse = image.at_level(level)
        rows = coarse.tensor[0]
        for dtype in ("<f4", "<f8", "u1", "<i2", "<i4", "<i8"):
            yield f"{dtype} at 1/{level.shrink}", patterns(rows.round() if dtype[-2] != "f" else rows, dtype)
        for number, column in enumerate(quantised(coarse, Columns("moments"))):
            name = "quantised" if number == 0 else f"quantised moment {number}"
            for dtype in ("<i2", "<i4", "<i8", "<f4", "<f8"):
                yield f"{name} {dtype} at 1/{level.shrink}", patterns(column, dtype)


def first_rows_of(moving: Image, fixed: Image) -> Iterator[tuple[str, list[bytes]]]:
    """party_1's secret itself: X of the first product at any scale, as 64-bit words or as the lower halves of words.

    Steepest-descent images or, with moments, spatial gradients; and the warped image.
    """

    class Catch:
        def __init__(self, operand: Any) -> None:
            self.operand = operand

        def __getattr__(self, name: str) -> Any:
            return getattr(self.operand, name)

        def multiply(self, rows: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
            self.rows = rows
            return rows, torch.zeros(len(pairs), dtype=torch.float64)

    start = Affine(fixed.grid)
    with torch.no_grad():
        start.translation.copy_(moving.grid.centre - fixed.grid.centre)
    for columns in (IMAGE, Columns("moments")):
        catch = Catch(ClearFixed(fixed).operand(OperandRequest(LEVELS[0], columns=columns)))
        SSD(catch).linearise(start, moving.at_level(LEVELS[0]))  # type: ignore[arg-type]
        for bits in range(-8, 41):
            integers = (catch.rows.double() * 2.0**bits).round().to(torch.int64)
            yield f"X of {columns.kind} times 2^{bits}", patterns(integers, "<i8")
            yield f"lower halves of X of {columns.kind} times 2^{bits}", patterns(integers & 0xFFFFFFFF, "<u4")


def found_in(stream: bytes, forms: list[tuple[str, list[bytes]]]) -> list[str]:
    return [name for name, pieces in forms if any(piece in stream for piece in pieces)]


def test_no_pixel_row_is_in_what_crossed(observed: Observed) -> None:
    moving, fixed = load_image(observed.files.moving), load_image(observed.files.fixed)
    forms = [*forms_of(fixed), *forms_of(moving), *first_rows_of(moving, fixed)]
    for way, stream in observed.taps.streams.items():
        assert found_in(stream, forms) == [], way


def test_a_planted_pixel_row_is_found(observed: Observed) -> None:
    """Control: every form is found where it was put between the bytes, and where a careless message carries it."""
    moving, fixed = load_image(observed.files.moving), load_image(observed.files.fixed)
    stream = observed.taps.streams["party_2", "party_1"]
    forms = [*forms_of(fixed), *forms_of(moving), *first_rows_of(moving, fixed)]
    assert sum(bool(pieces) for _, pieces in forms) > 50
    for name, pieces in forms:
        if pieces:
            middle = len(stream) // 2 + 3
            planted = stream[:middle] + pieces[len(pieces) // 2] + stream[middle:]
            assert name in found_in(planted, [(name, pieces)])
    left, right = link_pair("party_1", "party_2")
    left.send(MessageKind.OPENING, pack({}, [quantised(fixed)[0].numpy()]))
    # In the last row y is 1, and so J its own moment.
    sent = found_in(bytes(right.receive().payload), list(forms_of(fixed)))
    assert sent == ["quantised <i8 at 1/1", "quantised moment 2 <i8 at 1/1"]
    left.close()
    right.close()


def test_a_byte_too_many_is_seen() -> None:
    """Control of `parse`."""
    message = Tapped(1, bytes(16), 0, -1, -1, b"abc")
    assert message.size == 63 == HEADER.size + 3 + TAG_SIZE
    with pytest.raises(AssertionError, match="left over"):
        parse(b"x")
    with pytest.raises(AssertionError, match="no message at byte 0"):
        parse(bytes(60))


def test_the_streams_of_two_runs_differ(observed: Observed, started: Started, tmp_path: Path) -> None:
    """Masks, keys and shares are fresh in each run: only the plain messages repeat."""
    again = tmp_path / "again"
    with tapped_wires() as taps:
        run(observed.files.configuration(observed.backend, pyramid=_pyramid()), again)
    secret = {
        MessageKind.OPENING,
        MessageKind.RESULT_SHARE,
        MessageKind.REPLY_CIPHERTEXTS,
        MessageKind.MASKED_RESULT,
        MessageKind.OPERAND_CIPHERTEXTS,
    }
    secret |= {MessageKind.SEED, MessageKind.ZERO_SEED, MessageKind.TRIPLE_CORRECTION, MessageKind.PUBLIC_KEY}
    secret |= {MessageKind.OPENED_OPERAND, MessageKind.MASKED_ROWS}
    compared = 0
    for way in taps.streams:
        for mine, theirs in zip(observed.taps.messages(*way), taps.messages(*way), strict=True):
            assert mine.kind == theirs.kind
            compared += mine.kind in secret
            assert (mine.payload != theirs.payload) is (mine.kind in secret)
    assert compared > 10
    assert json.loads((again / "party_2.json").read_text())["transform"] is None
    assert len(started) >= 2
