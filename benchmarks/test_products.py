"""Products at small sizes: right, and fast by ratio. `pytest benchmarks/test_products.py`; `make test` leaves it out.

Time ratios are asserted here only, and loosely: the targets are reported by products.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import products
import pytest
import timing
from contenders import CKKS_CHUNK, Contender, Work, ckks_v1, private, stock_crypten
from torch import Tensor

POINTS = 20_000
CKKS_POINTS = 2 * CKKS_CHUNK
WORKS = Work.of_iteration(POINTS, 2, seed=0)
PRIVATE = [f"{name} {way}" for name in ("beaver", "spdz", "bfv", "ckks") for way in WORKS]


@pytest.fixture(scope="module")
def contenders() -> Iterator[dict[str, tuple[Contender, Tensor]]]:
    """Name -> (contender, its right answer); all are open at once, and take turns."""
    part = WORKS["direct"].part(CKKS_POINTS)
    with ExitStack() as stack:
        opened = {}
        for label in PRIVATE:
            name, way = label.split()
            opened[label] = (stack.enter_context(private(name, WORKS[way], 1)), WORKS[way].exact())
        for provider in ("TFP", "TTP"):
            contender = stack.enter_context(stock_crypten(provider, WORKS["direct"], 1))
            opened[contender.name] = (contender, WORKS["direct"].exact())
        yield opened | {"ckks-v1": (stack.enter_context(ckks_v1(part, 1)), part.exact())}


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
    assert per_pixel["ckks-v1"] > 200 * per_pixel["bfv direct"]  # thousands at full size
    assert per_pixel["ckks-v1"] > 200 * per_pixel["spdz direct"]
    assert per_pixel["spdz direct"] < 3 * per_pixel["crypten-ttp"]  # no slower than the original, roughly


def test_bytes(contenders: dict[str, tuple[Contender, Tensor]]) -> None:
    bfv, spdz, ckks = (contenders[name][0].traffic() for name in ("bfv direct", "spdz direct", "ckks-v1"))
    assert bfv.up <= products.UP_TARGET_BYTES
    assert bfv.down < 1000
    assert bfv.up < 0.1 * spdz.up
    assert ckks.once > 8e6  # the Galois keys are in it
