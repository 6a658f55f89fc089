"""Arithmetic modulo primes of 60 bits is Python's."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppir_torch.arithmetic.residues import reduced, times_modulo
from ppir_torch.protocols.lattice.slots import PRIMES
from ppir_torch.protocols.lattice.slots import SLOT_MODULUS as T

Q = math.prod(PRIMES)
EDGE = (1 << 61) - 1
moduli = st.sampled_from([*PRIMES, T, 3, EDGE]) | st.integers(1, EDGE)


@settings(deadline=None)
@given(st.lists(st.integers(-EDGE, EDGE), min_size=1), st.integers(-EDGE, Q), moduli)
def test_products_are_pythons(words: list[int], factor: int, modulus: int) -> None:
    found = times_modulo(np.array(words), factor, modulus)
    assert found.dtype == np.uint64
    assert found.tolist() == [word * factor % modulus for word in words]


@pytest.mark.parametrize("modulus", [*PRIMES, T, 3, EDGE])
def test_products_at_the_edges(modulus: int) -> None:
    """Halves of 30 bits full and empty, quotients just below and above a whole number."""
    draw = random.Random(modulus)
    words = [0, 1, -1, EDGE, -EDGE, modulus - 1, 1 - modulus, modulus // 2, (1 << 30) - 1, 1 << 30, -(1 << 30)]
    words += [draw.randint(-EDGE, EDGE) >> draw.randint(0, 61) for _ in range(3000)]
    factors = [0, 1, 2, -1, modulus - 1, modulus // 2, modulus // 2 + 1, 1 << 30, pow(2, -1, modulus)]
    for factor in factors + [draw.randrange(modulus) for _ in range(20)]:
        found = times_modulo(np.array(words), factor, modulus)
        assert found.tolist() == [word * factor % modulus for word in words]


@settings(deadline=None)
@given(st.lists(st.integers(0, Q - 1), min_size=1), st.sampled_from([T, PRIMES[0], 2, 1 << 59]))
def test_numbers_known_by_their_residues(numbers: list[int], modulus: int) -> None:
    residues = np.array([[number % p for number in numbers] for p in PRIMES], np.uint64)
    assert reduced(residues, PRIMES, modulus).tolist() == [number % modulus for number in numbers]


def test_numbers_at_the_edges() -> None:
    numbers = [0, 1, T - 1, T, T + 1, Q - 1, Q - T, Q // 2, Q // 2 + 1]
    for p in PRIMES:
        numbers += [p - 1, p, p + 1, Q // p - 1, Q // p, Q // p + 1, Q - p, Q - Q // p, p * T]
    residues = np.array([[number % p for number in numbers] for p in PRIMES], np.uint64)
    assert reduced(residues, PRIMES, T).tolist() == [number % T for number in numbers]
