"""party_1's work under encryption where pixels are coefficients: products with its rows, made safe to send.

    R[i] = X[r_i] . Y[c_i]   for the pairs (r_i, c_i); rows lie side by side in a polynomial (packing.py)

Nothing is sent here; coefficient_sides.py does. What a ciphertext is, and why a covered product says nothing of X, is
behind `MovingCoefficientCipher`: bfv_coefficients.py and ckks_coefficients.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...joint.bounds import Limits, Pairs
from ...joint.header import OperandHeader
from .ciphers import MovingCipher
from .packing import Layout
from .seal_format import Words

__all__ = ["Covered", "MovingCoefficientCipher", "OwnProducts", "Products"]


class MovingCoefficientCipher(MovingCipher):
    """What party_1 does to ciphertexts whose coefficients are pixels.

    Attributes:
        max_words: released in a session, for which the cipher's bounds hold.
    """

    max_words: ClassVar[int]

    @abstractmethod
    def layout(self, header: OperandHeader) -> Layout:
        """How an operand is packed; both parties derive it from the header."""

    @abstractmethod
    def limits(self, header: OperandHeader) -> Limits:
        """What rows may be multiplied; RangeError where the operand leaves no room."""

    @abstractmethod
    def plaintext(self, coefficients: NDArray[np.int64]) -> Any:
        """Rows side by side (n,), not all zero, ready to be multiplied; may be overwritten by the next one."""

    @abstractmethod
    def draw(self, count: int) -> tuple[list[int], list[int]]:
        """(masks of the results, what hides the released words of c0), fresh for the words of one product."""

    @abstractmethod
    def cover(self, product: Any, positions: Sequence[int], hiding: Sequence[int]) -> tuple[Words, Words]:
        """Re-randomise a product, in place, hide its released words and drop primes.

        Args:
            product: of the ciphertext and rows; or a fresh zero.
            positions: of the coefficients that are released.
            hiding: of `draw`, for each of them.

        Returns:
            c0 at these positions (positions, primes), and c1 (primes, n), both safe to send.
        """

    @abstractmethod
    def opened(self, answer: memoryview, masks: Sequence[int]) -> Tensor:
        """The results (results,) int64 of a MASKED_RESULT, given the sum of the masks in each of them.

        Raises:
            LinkError: not as many words, or words out of range.
        """

    def prepare(self, count: int) -> None:
        """Make ready what `count` polynomials need, while party_2 decrypts. Without this they take a little longer."""


@dataclass(frozen=True)
class Covered:
    """Products that are safe to send, and the masks that party_1 takes off the answer.

    >>> def words(*values: int) -> Covered:
    ...     places = np.zeros((len(values), 2), np.uint16)
    ...     return Covered(list(values), np.array(values, np.uint64)[:, None], places, [np.zeros((1, 4), np.uint64)])
    >>> both = words(7).joined(words(5, 6)).ordered([2, 0, 1])
    >>> both.masks, both.places[:, 0].tolist(), len(both.c1)
    ([5, 6, 7], [1, 1, 0], 2)

    Attributes:
        masks: (words,) integers.
        c0: the released words (words, primes).
        places: (words, 2) uint16: of each word its polynomial among c1 and its row's place in the group.
        c1: polynomials (primes, n).
    """

    masks: list[int]
    c0: Words
    places: NDArray[np.uint16]
    c1: list[Words]

    def joined(self, other: Covered) -> Covered:
        """Both, the other's words after ours."""
        shifted = other.places + np.array([len(self.c1), 0], np.uint16)
        places = np.concatenate([self.places, shifted])
        return Covered(self.masks + other.masks, np.concatenate([self.c0, other.c0]), places, self.c1 + other.c1)

    def ordered(self, numbers: Sequence[int]) -> Covered:
        """Word i here is word `numbers[i]` there."""
        order = np.argsort(numbers)
        return Covered([self.masks[i] for i in order], self.c0[order], self.places[order], self.c1)


class Products(ABC):
    """party_1's work on one operand.

    Attributes:
        layout: how the operand is packed.
    """

    layout: Layout

    @abstractmethod
    def add(self, number: int, file: bytes) -> None:
        """Take ciphertext `number` as it arrived; raises LinkError where it is not one of the agreed parameters."""

    @abstractmethod
    def covered(self, matrix: NDArray[np.int64], pairs: Pairs, blocks: Sequence[int]) -> Covered:
        """The products of the pairs with rows (rows, points) in these blocks, safe to send."""

    @abstractmethod
    def prepare(self) -> None:
        """Make ready what another product like the last one needs, while party_2 decrypts."""


class OwnProducts(Products):
    """The work of one process.

    Args:
        cipher: of the session, with party_2's public key.
        layout: of the operand.
    """

    def __init__(self, cipher: MovingCoefficientCipher, layout: Layout) -> None:
        self.layout = layout
        self._cipher = cipher
        self._ciphertexts: dict[int, Any] = {}
        self._polynomials = 0  # of the last product

    def add(self, number: int, file: bytes) -> None:
        """See `Products`."""
        self._ciphertexts[number] = self._cipher.load(file)

    def prepare(self) -> None:
        """See `Products`."""
        self._cipher.prepare(self._polynomials)

    def covered(self, matrix: NDArray[np.int64], pairs: Pairs, blocks: Sequence[int]) -> Covered:
        """See `Products`."""
        masks, hiding = self._cipher.draw(len(pairs))
        c0, c1 = list[Words](), list[Words]()
        order, places = list[int](), list[tuple[int, int]]()
        group = self.layout.group
        for start in range(0, len(matrix), group):
            wanted: dict[int, list[int]] = {}  # column -> the pairs of this group of rows
            for number, (row, column) in enumerate(pairs):
                if start <= row < start + group:
                    wanted.setdefault(column, []).append(number)
            products = self.uncovered(matrix[start : start + group], list(wanted), blocks) if wanted else {}
            for column, product in products.items():
                numbers = wanted[column]
                of_words = [(len(c1), pairs[number][0] - start) for number in numbers]
                positions = [self.layout.position(place) for _, place in of_words]
                words, polynomial = self._cipher.cover(product, positions, [hiding[number] for number in numbers])
                c0.append(words)
                c1.append(polynomial)
                order += numbers
                places += of_words
        self._polynomials = len(c1)
        sent = Covered([masks[number] for number in order], np.concatenate(c0), np.array(places, np.uint16), c1)
        return sent.ordered(order)

    def uncovered(self, rows: NDArray[np.int64], columns: Sequence[int], blocks: Sequence[int]) -> dict[int, Any]:
        """One group of rows times each column: ciphertexts of all primes, not yet safe to send."""
        seal, evaluator, layout = self._cipher.scheme.seal, self._cipher.scheme.evaluator, self.layout
        words = np.zeros((layout.group, layout.block), np.int64)
        totals: dict[int, Any] = {}
        unwanted: dict[int, Any] = {}
        term = seal.Ciphertext()
        for number in blocks:
            block = rows[:, number * layout.block : (number + 1) * layout.block]
            # SEAL refuses to multiply by zero. A black block is multiplied by one and left out: it takes the same time.
            black = not block.any()
            words[: len(rows), : layout.block - block.shape[1]] = 0
            words[: len(rows), layout.block - block.shape[1] :] = block[:, ::-1]
            words[0, -1] += black
            plaintext = self._cipher.plaintext(words.reshape(-1))
            sums = unwanted if black else totals
            for column in columns:
                ciphertext = self._ciphertexts[column * layout.blocks + number]
                if column in sums:
                    evaluator.multiply_plain(ciphertext, plaintext, term)
                    evaluator.add_inplace(sums[column], term)
                else:
                    sums[column] = seal.Ciphertext()
                    evaluator.multiply_plain(ciphertext, plaintext, sums[column])
        return {column: totals[column] if column in totals else self._cipher.fresh_zero() for column in columns}
