"""`backend: auto`: which protocol is chosen, and that it says why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppir_torch.config.protocols import PROTOCOLS
from ppir_torch.protocols.chooser import choose, costs

SIZES = {2: 56_797, 3: 902_629}


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("bandwidth", [1, 100, 10_000])
def test_without_a_dealer_encryption_is_chosen(dimension: int, bandwidth: float) -> None:
    choice = choose(SIZES[dimension], dimension * (dimension + 1), dimension, bandwidth, dealer=False)
    assert choice.name == "bfv"
    assert "without a dealer" in choice.reason


@pytest.mark.parametrize("dimension", [2, 3])
def test_on_a_fast_network_with_a_dealer_the_one_sided_product_is_chosen(dimension: int) -> None:
    choice = choose(SIZES[dimension], dimension * (dimension + 1), dimension, 1000, dealer=True)
    assert choice.name == "beaver"
    assert "bfv" in choice.reason
    assert "1000 Mbit/s" in choice.reason


def test_on_a_slow_network_bytes_decide() -> None:
    """Many products over a modem line: ciphertexts are sent once, masked rows every time."""
    assert choose(56_797, 6, 2, 1, dealer=True).name == "bfv"


@given(
    points=st.integers(32, 10**8),
    dimension=st.sampled_from([2, 3]),
    parameters=st.integers(1, 100),
    bandwidth=st.floats(0.1, 1e6),
    dealer=st.booleans(),
)
def test_the_choice_is_a_secure_protocol_and_the_cheapest(
    points: int, dimension: int, parameters: int, bandwidth: float, dealer: bool
) -> None:
    choice = choose(points, parameters, dimension, bandwidth, dealer)
    assert choice.name in PROTOCOLS.names()
    assert choice.name != "ckks-v1"
    table = costs(points, parameters, dimension)
    allowed = [name for name in table if dealer or name == "bfv"]
    assert table[choice.name].seconds(bandwidth) == min(table[name].seconds(bandwidth) for name in allowed)
    assert f"N={points:,}" in choice.reason


@pytest.mark.parametrize("name", ["beaver", "spdz", "bfv"])
def test_cost_grows_with_points_and_parameters(name: str) -> None:
    small, more, wider = (costs(n, p, 2)[name] for n, p in ((10_000, 4), (100_000, 4), (10_000, 50)))
    assert small.seconds(100) < more.seconds(100)
    assert small.seconds(100) < wider.seconds(100)
