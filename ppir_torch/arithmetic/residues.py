"""Arrays modulo primes of 60 bits, and of large numbers that are known by their residues, in 64-bit words.

>>> times_modulo(np.array([2, -1]), 5, 7).tolist()
[3, 2]
>>> reduced(np.array([[1], [2]], np.uint64), (3, 5), 4).tolist()  # 7 modulo 3 and 5
[3]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["reduced", "times_modulo"]


def times_modulo(words: NDArray[np.integer[Any]], factor: int, modulus: int) -> NDArray[np.uint64]:
    """Words in (-2^61, 2^61) times a factor, modulo a number below 2^61.

    In halves of 30 bits the quotient is below 2^33 and off by less than one in float64, and the difference of the
    products, which wrap modulo 2^64, is the remainder or the remainder less the modulus.
    """
    factor %= modulus
    upper = (factor << 30) % modulus
    signed = words.astype(np.int64)
    high, low = signed >> 30, signed & ((1 << 30) - 1)
    quotient = np.rint(high * (upper / modulus) + low * (factor / modulus)).astype(np.int64)
    rest = high * upper + low * factor - quotient * modulus
    return np.where(rest < 0, rest + modulus, rest).astype(np.uint64)


def reduced(residues: NDArray[np.uint64], primes: Sequence[int], modulus: int) -> NDArray[np.uint64]:
    """The numbers in [0, product of the primes) with these residues (primes, n), modulo another number: (n,).

    By Garner's mixed radix: v = d1 + p1 d2 + p1 p2 d3 ..., each digit below its prime. Primes below 2^60.
    """
    digits: list[NDArray[np.int64]] = []
    total, radix = np.zeros(residues.shape[1], np.uint64), 1
    for residue, prime in zip(residues.astype(np.int64), primes, strict=True):
        digit = residue
        for known, other in zip(digits, primes, strict=False):
            digit = times_modulo(digit - known, pow(other, -1, prime), prime).astype(np.int64)
        total = (total + times_modulo(digit, radix, modulus)) % np.uint64(modulus)
        digits.append(digit)
        radix *= prime
    return total
