"""Products at small sizes: right, and fast by ratio. `pytest benchmarks/test_products.py`; `make test` leaves it out.

Time ratios are asserted here only, and loosely: the targets are reported by products.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import products
import pytest
import timing
import torch
from contenders import CKKS_CHUNK, Contender, ckks_v1, private, reference, stock_crypten
from torch import Tensor

POINTS, ROWS = 20_000, 7
CKKS_POINTS = 2 * CKKS_CHUNK
PRIVATE = ("bfv", "spdz")


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, POINTS, generator=generator), torch.randn(POINTS, generator=generator)


@pytest.fixture(scope="module")
def contenders(data: tuple[Tensor, Tensor]) -> Iterator[dict[str, tuple[Contender, Tensor]]]:
    """Name -> (contender, its right answer); all are open at once, and take turns."""
    rows, fixed = data
    part, pixels = rows[: products.CKKS_ROWS, :CKKS_POINTS], fixed[:CKKS_POINTS]
    with ExitStack() as stack:
        enter = stack.enter_context
        full = [enter(private(name, rows, fixed, 1)) for name in PRIVATE]
        full += [enter(stock_crypten(provider, rows, fixed, 1)) for provider in ("TFP", "TTP")]
        opened = {c.name: (c, reference(rows, fixed)) for c in full}
        baseline = enter(ckks_v1(part, pixels, 1))
        yield opened | {baseline.name: (baseline, reference(part, pixels))}


@pytest.mark.parametrize("name", [*PRIVATE, "crypten-tfp", "crypten-ttp", "ckks-v1"])
def test_product(name: str, contenders: dict[str, tuple[Contender, Tensor]], benchmark) -> None:  # type: ignore[no-untyped-def]
    contender, truth = contenders[name]
    _, result = benchmark.pedantic(contender.product, rounds=2 if name == "ckks-v1" else 5, warmup_rounds=1)
    traffic = contender.traffic()
    benchmark.extra_info |= {"up": traffic.up, "down": traffic.down, "once": traffic.once}
    assert (result.double() - truth).norm() <= 1e-2 * truth.norm()


def test_ratios(contenders: dict[str, tuple[Contender, Tensor]]) -> None:
    runs = timing.alternate({name: c.product for name, (c, _) in contenders.items()}, repeats=5, warm_up=0)
    per_pixel = {
        name: timing.median([seconds for seconds, _ in results]) / contenders[name][0].points
        for name, results in runs.items()
    }
    assert per_pixel["ckks-v1"] > 200 * per_pixel["bfv"]  # thousands at full size
    assert per_pixel["ckks-v1"] > 200 * per_pixel["spdz"]
    assert per_pixel["spdz"] < 3 * per_pixel["crypten-ttp"]  # no slower than the insecure original, give or take noise


def test_bytes(contenders: dict[str, tuple[Contender, Tensor]]) -> None:
    bfv, spdz, ckks = (contenders[name][0].traffic() for name in ("bfv", "spdz", "ckks-v1"))
    assert bfv.up <= products.UP_TARGET_BYTES
    assert bfv.down < 1000
    assert bfv.up < 0.1 * spdz.up
    assert ckks.once > 8e6  # the Galois keys are in it
