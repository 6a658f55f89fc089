"""bfv: exact against Python integers, small replies, and refusal before anything is sent."""

from __future__ import annotations

import gc
import math
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from joint.ends import OVERHEAD, header_of
from torch import Tensor

from ppir_torch.errors import LinkError, PpirError, RangeError
from ppir_torch.joint.bounds import Limits, Pairs
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import release_all
from ppir_torch.protocols.lattice import bfv, bfv_coefficients
from ppir_torch.protocols.lattice.bfv import BfvFixedSide, BfvMovingSide
from ppir_torch.protocols.lattice.coefficient_sides import FixedCoefficientOperand, MovingCoefficientOperand
from ppir_torch.protocols.lattice.packing import Layout
from ppir_torch.protocols.lattice.second_process import SecondProcess, SharedProducts
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import Link, Received, link_pair
from ppir_torch.wire.payload import pack, unpack

MAX_RESULT = bfv_coefficients.MAX_RESULT
MARGIN = 1 - 2e-9  # check_range keeps 1e-9 for its own rounding


@dataclass
class Parties:
    """Both ends in one process; party_2 answers in a thread."""

    links: tuple[Link, Link] = field(default_factory=lambda: link_pair("party_1", "party_2", timeout=120.0))

    def __post_init__(self) -> None:
        self.moving, self.fixed = BfvMovingSide(self.links[0]), BfvFixedSide(self.links[1])

    def send(self, header: OperandHeader, values: Tensor) -> None:
        """The operand of the products that follow."""
        self.theirs: FixedCoefficientOperand = self.fixed.open(header, values)
        self.operand: MovingCoefficientOperand = self.moving.open(header)

    def multiply(self, rows: Tensor, pairs: Pairs | None = None) -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(lambda: self.theirs.answer(next_product(self.links[1]), release_all))
            result = self.operand.multiply(rows, pairs)
            answered.result()
        assert result.dtype == torch.int64
        assert result.ndim == 1
        return [int(v) for v in result]


def next_product(link: Link) -> Received:
    """What party_1 asks for next, whichever operand it is with."""
    request = link.receive()
    return link.receive() if request.kind is MessageKind.OPERAND_IN_USE else request


def exact(rows: Tensor, values: Tensor) -> list[int]:
    """Every row with every column, row by row; faster than `python_products` for many points."""
    columns = values.reshape(-1, values.shape[-1]).numpy().astype(object)
    return [int(v) for v in (rows.numpy().astype(object) @ columns.T).flatten()]


def uniform(generator: torch.Generator, bound: int, *shape: int) -> Tensor:
    return torch.randint(-bound, bound + 1, shape, generator=generator)


def largest_entry(limits: Limits, points: int, most: int = 1 << 20) -> int:
    """Of rows with all of whose entries the row is no longer than it may be."""
    return min(most, limits.max_row, math.floor(limits.max_norm / math.sqrt(points)))


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


@pytest.mark.parametrize(
    ("points", "rows"),
    [(1, 1), (1, 7), (2, 2), (5, 3), (1023, 8), (1024, 7), (1025, 7), (8191, 1), (8193, 1), (3000, 13), (20011, 4)],
)
def test_agrees_with_python_integers(parties: Parties, points: int, rows: int) -> None:
    g = torch.Generator().manual_seed(points * 100 + rows)
    values = uniform(g, 1 << 11, points)
    parties.send(header_of(values, rows), values)
    for count, bits in ((rows, 14), (1, 20), (max(1, rows // 2), 1)):
        matrix = uniform(g, largest_entry(parties.operand.limits, points, 1 << bits), count, points)
        assert parties.multiply(matrix) == exact(matrix, values)


@pytest.mark.parametrize(
    ("points", "rows", "columns"),
    [(1, 1, 2), (5, 3, 4), (1024, 8, 4), (1025, 7, 3), (8193, 1, 13), (8191, 3, 2), (20011, 4, 4), (3000, 13, 4)],
)
def test_columns_agree_with_python_integers(parties: Parties, points: int, rows: int, columns: int) -> None:
    g = torch.Generator().manual_seed(points + rows)
    values = uniform(g, 1 << 11, columns, points)
    parties.send(header_of(values, rows), values)
    matrix = uniform(g, largest_entry(parties.operand.limits, points, 1 << 14), rows, points)
    expected = exact(matrix, values)
    assert parties.multiply(matrix) == expected
    # Some of the products, in another order: only these are sent, and only the polynomials that they lie in.
    chosen = torch.randperm(rows * columns, generator=g)[: max(1, rows * columns // 2)].tolist()
    before = parties.links[0].sent[MessageKind.REPLY_CIPHERTEXTS], parties.links[1].sent[MessageKind.MASKED_RESULT]
    assert parties.multiply(matrix, [divmod(n, columns) for n in chosen]) == [expected[n] for n in chosen]
    polynomials = {(n // columns // parties.operand.products.layout.group, n % columns) for n in chosen}
    up, down = (
        link.sent[kind] - b
        for link, kind, b in zip(
            parties.links, (MessageKind.REPLY_CIPHERTEXTS, MessageKind.MASKED_RESULT), before, strict=True
        )
    )
    assert up == OVERHEAD + 8 + 12 * len(chosen) + len(polynomials) * bfv_coefficients.DEGREE * 60 // 8
    assert down == OVERHEAD + 8 * len(chosen)


def test_many_random_sizes(parties: Parties) -> None:
    g = torch.Generator().manual_seed(7)
    for number in range(25):
        points, rows = int(torch.randint(1, 4000, (), generator=g)), int(torch.randint(1, 20, (), generator=g))
        bits = int(torch.randint(1, 16, (), generator=g))
        values = uniform(g, 1 << bits, points)
        if not values.any():
            values[0] = 1
        parties.send(header_of(values, rows, number), values)
        matrix = uniform(g, largest_entry(parties.operand.limits, points, 1 << (20 - bits)), rows, points)
        assert parties.multiply(matrix) == exact(matrix, values)


@pytest.mark.parametrize("points", [1, 900, 2500])
def test_edges_of_the_range(parties: Parties, points: int) -> None:
    """Of the operand's entries, of the rows' length, and of the result, with each of these as large as it can be."""
    largest = int(MAX_RESULT * MARGIN)
    values = torch.full((points,), largest // points)
    parties.send(header_of(values, 2), values)
    matrix = torch.stack([torch.ones(points, dtype=torch.int64), -torch.ones(points, dtype=torch.int64)])
    assert parties.multiply(matrix) == [points * (largest // points), -points * (largest // points)]
    entry = largest_entry(parties.operand.limits, points)
    assert (entry + 1) * math.sqrt(points) > parties.operand.limits.max_norm
    step = largest // points // entry
    values = torch.full((points,), step)
    parties.send(header_of(values, 2), values)
    matrix *= entry
    assert parties.multiply(matrix) == [points * step * entry, -points * step * entry]
    assert points * step * entry > 0.999 * MAX_RESULT
    alone = torch.zeros(2, points, dtype=torch.int64)
    alone[0, -1], alone[1, 0] = parties.operand.limits.max_row, -parties.operand.limits.max_row
    values = torch.full((points,), largest // parties.operand.limits.max_row // math.isqrt(points))
    parties.send(header_of(values, 2), values)
    assert parties.multiply(alone) == exact(alone, values)


@pytest.mark.parametrize("sign", [1, -1])
def test_largest_operand(parties: Parties, sign: int) -> None:
    values = torch.tensor([sign * int(MAX_RESULT * MARGIN), 0])
    parties.send(header_of(values, 2), values)
    assert parties.multiply(torch.tensor([[1, 0], [-1, 0]])) == [int(values[0]), -int(values[0])]
    # Entries just below half of t are encrypted; zero is the only row that their products have room for.
    values[0] = sign * ((1 << 36) - 1)
    parties.send(header_of(values, 2), values)
    assert parties.multiply(torch.zeros(1, 2, dtype=torch.int64)) == [0]
    with pytest.raises(RangeError, match="product: up to"):
        parties.operand.multiply(torch.tensor([[1, 0]]))
    with pytest.raises(RangeError, match=r"below 2\^36 are needed"):
        parties.fixed.open(header_of(values + sign, 2), values + sign)


def test_zero_rows_blocks_and_operands(parties: Parties) -> None:
    g = torch.Generator().manual_seed(3)
    values = uniform(g, 500, 3000)
    parties.send(header_of(values, 5), values)
    matrix = uniform(g, 500, 5, 3000)
    matrix[2] = 0
    matrix[:, 1024:2048] = 0
    assert parties.multiply(matrix) == exact(matrix, values)
    assert parties.multiply(torch.zeros(5, 3000, dtype=torch.int64)) == [0] * 5
    nothing = torch.zeros(3000, dtype=torch.int64)
    parties.send(header_of(nothing, 5), nothing)
    assert parties.multiply(matrix) == [0] * 5


def test_row_order_and_strides_do_not_matter(parties: Parties) -> None:
    g = torch.Generator().manual_seed(4)
    values, matrix = uniform(g, 500, 1500), uniform(g, 500, 1500, 3).T
    parties.send(header_of(values, 3), values)
    assert parties.multiply(matrix) == exact(matrix, values)


def test_several_operands_one_key() -> None:
    parties, g, opened = Parties(), torch.Generator().manual_seed(5), []
    for number, points in enumerate((700, 2000, 64)):
        values, matrix = uniform(g, 100, points), uniform(g, 100, 2, points)
        parties.send(header_of(values, 2, number), values)
        assert parties.multiply(matrix) == exact(matrix, values)
        opened.append((values, matrix, parties.operand, parties.theirs))
    for values, matrix, parties.operand, parties.theirs in opened:  # the older ones are usable, too
        assert parties.multiply(-matrix) == exact(-matrix, values)
    assert parties.links[1].sent[MessageKind.PUBLIC_KEY] == parties.links[0].received[MessageKind.PUBLIC_KEY] < 500_000


@pytest.mark.parametrize(
    ("points", "rows", "columns"),
    [
        (20_000, 1, 3),
        pytest.param(20_000, 1, 2, marks=pytest.mark.slow),
        pytest.param(210_000, 3, 2, marks=pytest.mark.slow),
    ],
)
def test_a_second_process_changes_nothing(
    points: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes columns where there is one row, and rows where there are more; each pair is its or ours."""
    monkeypatch.setattr(bfv, "LARGE", 2)
    monkeypatch.setattr(bfv, "cores", lambda: 2)
    shared: list[int] = []
    share = SharedProducts.share

    def watched(products: SharedProducts, pairs: Pairs) -> list[int]:
        shared.append(len(theirs := share(products, pairs)))
        return theirs

    monkeypatch.setattr(SharedProducts, "share", watched)
    parties, g = Parties(), torch.Generator().manual_seed(points)
    for number in range(2):  # both processes hold both operands
        values, matrix = uniform(g, 1 << 9, columns, points), uniform(g, 1 << 9, rows, points)
        matrix[:, 5_000:15_000] = 0  # a block of zeros, whatever the layout
        parties.send(header_of(values, rows, number), values)
        assert parties.operand.products.layout.group == 1
        expected = (matrix @ values.T).flatten().tolist()
        assert parties.multiply(matrix) == expected
        assert 0 < shared[-1] < rows * columns
        every = [divmod(n, columns) for n in range(rows * columns)]
        for pairs in (every[::-1], every[:1], every[-1:], every[1:]):
            result = parties.multiply(matrix, pairs)
            assert result == [expected[row * columns + column] for row, column in pairs]
    assert 0 in shared


def test_a_second_process_that_ended_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfv, "LARGE", 2)
    monkeypatch.setattr(bfv, "cores", lambda: 2)
    started: list[subprocess.Popen[bytes]] = []

    class Watched(SecondProcess):
        def __init__(self, public_key: bytes) -> None:
            super().__init__(public_key)
            started.append(self.process)

    monkeypatch.setattr(bfv, "SecondProcess", Watched)
    parties = Parties()
    values, matrix = torch.arange(40_000).reshape(2, 20_000) % 100, torch.ones(1, 20_000, dtype=torch.int64)
    parties.send(header_of(values, 1), values)
    assert parties.multiply(matrix) == exact(matrix, values)
    (process,) = started
    process.kill()
    process.wait()
    sent = parties.links[0].sent.copy()
    with pytest.raises(LinkError, match="the second process of party_1 has ended"):
        parties.operand.multiply(matrix)
    assert parties.links[0].sent == sent


def test_several_operands_share_the_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with any of them, in any order; one that nobody holds any more is forgotten there as well."""
    monkeypatch.setattr(bfv, "LARGE", 2)
    monkeypatch.setattr(bfv, "cores", lambda: 2)
    opened: list[int] = []
    dropped: list[int] = []

    class Watched(SecondProcess):
        def open(self, layout: Layout) -> int:
            opened.append(super().open(layout))
            return opened[-1]

        def drop(self, number: int) -> None:
            dropped.append(number)
            super().drop(number)

    monkeypatch.setattr(bfv, "SecondProcess", Watched)
    parties, g = Parties(), torch.Generator().manual_seed(11)
    operands = []
    for number in range(3):
        values = uniform(g, 1 << 9, 2, 20_000)
        parties.send(header_of(values, 1, number), values)
        operands.append((values, parties.operand, parties.theirs))
    for number in (0, 2, 1, 1, 0):
        values, parties.operand, parties.theirs = operands[number]
        matrix = uniform(g, 1 << 9, 1, 20_000)
        assert parties.multiply(matrix) == exact(matrix, values)
    assert (opened, dropped) == ([0, 1, 2], [])
    values, parties.operand, parties.theirs = operands[1]
    operands.clear()
    gc.collect()
    assert sorted(dropped) == [0, 2]
    assert parties.multiply(matrix) == exact(matrix, values)


def test_reply_is_one_ciphertext_in_2d(parties: Parties) -> None:
    g = torch.Generator().manual_seed(6)
    values = uniform(g, 1 << 11, 56_797)
    parties.send(header_of(values, 7), values)
    matrix = uniform(g, largest_entry(parties.operand.limits, 56_797), 7, 56_797)
    before = parties.links[0].sent.copy(), parties.links[1].sent.copy()
    assert parties.multiply(matrix) == exact(matrix, values)
    up, down = (link.sent - b for link, b in zip(parties.links, before, strict=True))
    assert set(up) == {MessageKind.REPLY_CIPHERTEXTS}
    assert up.total() <= 62_000
    assert set(down) == {MessageKind.MASKED_RESULT}
    assert down.total() <= 128


@pytest.mark.parametrize("case", ["row", "norm", "result", "shape", "type", "count", "released"])
def test_out_of_range_is_refused_before_anything_is_sent(case: str) -> None:
    parties, values = Parties(), torch.full((100,), 1 << 28)
    parties.send(header_of(values, 2), values)
    rows, limits = torch.ones(2, 100, dtype=torch.int64), parties.operand.limits
    if case == "released":
        parties.moving.coefficients.released.used = bfv_coefficients.MAX_WORDS - 1
    bad, match = {
        "row": (rows * (limits.max_row + 1), "entry of magnitude"),
        "norm": (rows * (math.floor(limits.max_norm / 10) + 1), "a row of length"),
        "result": (rows * 4, "product: up to"),
        "shape": (rows[:, :99], "needed"),
        "type": (rows.to(torch.int32), "needed"),
        "count": (rows[[0, 0, 0]], "at once"),
        "released": (rows, "results per session"),
    }[case]
    sent = parties.links[0].sent.copy()
    with pytest.raises(RangeError, match=match):
        parties.operand.multiply(bad)
    assert parties.links[0].sent == sent


@pytest.mark.parametrize("points", [2, 100, 40_000])
def test_a_row_longer_than_the_flood_covers_is_refused_before_anything_is_sent(points: int) -> None:
    """However small its entries and results are; one of the largest length is multiplied."""
    parties, values = Parties(), torch.arange(points) % 3 - 1
    parties.send(header_of(values, 2), values)
    limits, sent = parties.operand.limits, parties.links[0].sent.copy()
    entry = largest_entry(limits, points)
    within = torch.full((2, points), entry)
    # The first entry as large as the length allows, exactly.
    within[1, 0] = math.isqrt(math.floor(limits.max_norm**2) - (points - 1) * entry**2)
    longer = within.clone()
    longer[1, 0] += 1
    for bad in (longer, longer.flip(1), longer.flip(0), -longer, torch.full((1, points), entry + 1)):
        assert int(bad.abs().max()) <= limits.max_row
        with pytest.raises(RangeError, match=r"a row of length .*, at most .* is allowed"):
            parties.operand.multiply(bad)
    assert parties.links[0].sent == sent
    assert parties.multiply(within) == exact(within, values)


def test_ciphertexts_are_as_long_as_the_layout_takes_them_to_be() -> None:
    """Within a tenth: the packing is chosen by it."""
    parties, values = Parties(), torch.arange(2 * bfv_coefficients.DEGREE) - bfv_coefficients.DEGREE
    parties.fixed.open(header_of(values, 1), values)
    parties.links[0].receive(MessageKind.PUBLIC_KEY)
    _, files = unpack(parties.links[0].receive(MessageKind.OPERAND_CIPHERTEXTS).payload)
    assert len(files) == 2
    for file in files:
        # Two primes' words of 64 bits, and a seed instead of c1.
        assert 0 < file.size - 2 * 8 * bfv_coefficients.DEGREE < 500
        assert file.size == pytest.approx(bfv_coefficients.CIPHERTEXT_BYTES, rel=0.1)


@pytest.mark.parametrize("case", ["shape", "max_abs", "energy", "modulus", "half of the modulus", "points"])
def test_operand_that_does_not_fit_is_refused_before_anything_is_sent(case: str) -> None:
    parties, values = Parties(), torch.full((100,), 1000)
    header = header_of(values, 2)
    header, values = {
        "shape": (header, values[:99]),
        "max_abs": (replace(header, max_abs=999), values),
        "energy": (replace(header, energy=header.energy // 2), values),
        "modulus": (header_of(values << 40, 2), values << 40),
        "half of the modulus": (replace(header, max_abs=1 << 36), values),
        "points": (replace(header, points=1 << 42), values),
    }[case]
    with pytest.raises(RangeError):
        parties.fixed.open(header, values)
    assert not parties.links[1].sent


def is_prime(number: int) -> bool:
    """Miller and Rabin; with these bases exact below 2^64 (Jaeschke, 1993; Sorenson and Webster, 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    twos = ((number - 1) & -(number - 1)).bit_length() - 1
    powers = [[pow(base, number - 1 >> twos - k, number) for k in range(twos)] for base in bases]
    return all(first == 1 or number - 1 in (first, *later) for first, *later in powers)


def largest_primes(below: int, one_modulo: int, count: int) -> list[int]:
    found: list[int] = []
    candidate = (below - 1) // one_modulo * one_modulo + 1
    while len(found) < count:
        candidate -= one_modulo if candidate >= below else 0
        found += [candidate] * is_prime(candidate)
        candidate -= one_modulo
    return found


def test_the_primes_are_the_largest_that_are_one_modulo_t_and_2n() -> None:
    t, n = 1 << bfv_coefficients.PLAIN_BITS, bfv_coefficients.DEGREE
    assert [p for p in range(100) if is_prime(p)] == [
        *(2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
    ]
    assert not is_prime(3_215_031_751)  # a strong pseudoprime to the bases 2, 3, 5 and 7
    *data, special = bfv_coefficients.PRIMES
    assert data == largest_primes(1 << 60, t, 2)
    assert [special] == largest_primes(1 << 20, 2 * n, 1)
    seal = bfv_coefficients.scheme().seal
    for prime in bfv_coefficients.PRIMES:
        assert is_prime(prime)
        assert seal.Modulus(prime).is_prime()
        assert prime % (2 * n) == 1  # NTTs of degree n
    assert [prime % t for prime in data] == [1, 1]
    assert math.prod(data) % t == 1
    assert [prime.bit_length() for prime in bfv_coefficients.PRIMES] == [60, 60, 20]


def accepted(primes: list[int]) -> bool:
    """Whether SEAL takes these primes at 128 bits, with our degree and plaintext modulus."""
    seal = bfv_coefficients.scheme().seal
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(bfv_coefficients.DEGREE)
    parameters.set_coeff_modulus([seal.Modulus(prime) for prime in primes])
    parameters.set_plain_modulus(1 << bfv_coefficients.PLAIN_BITS)
    return bool(seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128).parameters_set())


def test_seal_accepts_the_parameters_at_128_bits() -> None:
    scheme = bfv_coefficients.scheme()
    limit = scheme.seal.CoeffModulus.MaxBitCount(bfv_coefficients.DEGREE, scheme.seal.SEC_LEVEL_TYPE.TC128)
    assert sum(prime.bit_length() for prime in bfv_coefficients.PRIMES) == 140 <= limit == 218
    assert accepted(list(bfv_coefficients.PRIMES))
    assert not accepted(largest_primes(1 << 60, 1 << bfv_coefficients.PLAIN_BITS, 4))  # 240 bits
    assert not accepted([bfv_coefficients.PRIMES[0] - 2, *bfv_coefficients.PRIMES[1:]])  # no prime
    top = scheme.context.first_context_data()
    assert top.qualifiers().sec_level == scheme.seal.SEC_LEVEL_TYPE.TC128
    assert top.qualifiers().using_fast_plain_lift
    assert min(scheme.primes) > 1 << bfv_coefficients.PLAIN_BITS
    assert top.total_coeff_modulus_bit_count() == 120
    assert scheme.primes == bfv_coefficients.PRIMES[:2]
    assert scheme.context.last_context_data().total_coeff_modulus_bit_count() == 60


def rounding_of_fresh_ciphertexts(modulus: int, values: list[int]) -> float:
    """The largest |t round(q m / t) / q - m| q / t: what SEAL's rounding adds to a fresh error."""
    t = 1 << bfv_coefficients.PLAIN_BITS
    left = [modulus * value % t for value in values]
    return max(min(r, t - r) for r in left) / t


def test_rounding_of_a_fresh_ciphertext_is_y_over_t_and_no_more() -> None:
    """On real ciphertexts: tests/attacks/test_bfv_reply.py. SEAL's own choice of primes adds a half."""
    scheme, t = bfv_coefficients.scheme(), 1 << bfv_coefficients.PLAIN_BITS
    values = [0, 1, -1, 2047, -2048, 123_456, t // 2 - 1, 1 - t // 2]
    for value in values:
        assert rounding_of_fresh_ciphertexts(math.prod(scheme.primes), [value]) == abs(value) / t
    usual = [m.value() for m in scheme.seal.CoeffModulus.Create(bfv_coefficients.DEGREE, [60, 60, 20])[:-1]]
    assert rounding_of_fresh_ciphertexts(math.prod(usual), list(range(2048))) > 0.49


@pytest.mark.parametrize("points", [1, 1000, 56_797, 902_629, 10**7, 10**8])
@pytest.mark.parametrize("rows", [1, 7, 13, 64, 1000])
def test_security_and_noise_budget(points: int, rows: int) -> None:
    """From the published constants: the flood hides every row that is in range, and decryption is right."""
    header = OperandHeader(0, points, rows, 1.0, 0.0, 1 << 12, points << 24)
    limits, group = bfv_coefficients.limits(header), bfv_coefficients.layout(header).group
    # |sum w_i e_i| <= s |w|_2 with e_i of 42 coins of a half each: Hoeffding's 2 exp(-2 s^2 / 42).
    beyond = 2 * math.exp(-2 * bfv_coefficients.FRESH_NOISE**2 / 42)
    assert beyond < 2**-60
    together = math.sqrt(group) * limits.max_norm  # |w|_2 of `group` rows side by side
    noise = (
        bfv_coefficients.FRESH_NOISE * together + bfv_coefficients.ZERO_NOISE + 1
    )  # SEAL's rounding adds |R| / t below 1/2
    assert bfv_coefficients.MAX_WORDS * (beyond + noise / 2**bfv_coefficients.FLOOD_BITS) < 2**-40
    # No tighter than it need be: entries of the size that J's rounding asks for, four, remain at the very least.
    assert bfv_coefficients.MAX_WORDS * (beyond + 2 * noise / 2**bfv_coefficients.FLOOD_BITS) > 2**-40
    assert limits.max_norm == pytest.approx(2**18 / math.sqrt(group), rel=1e-9)
    assert limits.max_row == min(1 << 20, math.floor(limits.max_norm))
    assert limits.max_norm >= 4 * math.sqrt(points)
    # Right decryption after the switch: flood, noise and rounding (Hoeffding, 2^-200) below q1 / 2t.
    first, *rest = bfv_coefficients.scheme().primes
    before = (noise + 2 ** (bfv_coefficients.FLOOD_BITS - 1)) / math.prod(rest)
    rounding = math.sqrt((bfv_coefficients.DEGREE + 1) / 2 * 201 * math.log(2)) + 1
    assert before + rounding < first / (2 << bfv_coefficients.PLAIN_BITS)
    # Noise of party_2 and the largest result stay within half of t.
    assert limits.max_result + limits.max_result // 32 < 1 << bfv_coefficients.PLAIN_BITS - 1


def test_more_points_than_the_flood_covers_are_refused() -> None:
    """Rows whose typical entry is below four would be rounding more than anything else."""
    most = 1 << 32
    assert bfv_coefficients.limits(OperandHeader(0, most, 1, 1.0, 0.0, 1, most)).max_norm == 4 * math.sqrt(most)
    with pytest.raises(RangeError, match=f"{most + 1} points are more than the noise flood can cover"):
        bfv_coefficients.limits(OperandHeader(0, most + 1, 1, 1.0, 0.0, 1, most))


def test_flood_is_centred_and_full_width() -> None:
    half = 1 << (bfv_coefficients.FLOOD_BITS - 1)
    assert bfv_coefficients.flood(0, 0) == -half
    assert bfv_coefficients.flood(-1, -1) == half - 1
    assert bfv_coefficients.flood(0, 1 << (bfv_coefficients.FLOOD_BITS - 65)) == 0


def reply_of(parties: Parties, rows: Tensor) -> bytes:
    """A genuine REPLY_CIPHERTEXTS payload, of an operand of one column."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(parties.operand.multiply, rows)
        payload = bytes(parties.links[1].receive(MessageKind.REPLY_CIPHERTEXTS).payload)
        parties.links[1].send(MessageKind.MASKED_RESULT, bytes(8 * len(rows)))
        sending.result()
    return payload


def test_malformed_replies_are_refused() -> None:
    parties, values = Parties(), torch.arange(-50, 50)
    parties.send(header_of(values, 9), values)
    good = reply_of(parties, torch.ones(9, 100, dtype=torch.int64))
    # How many words, how many polynomials; the words; where each lies (polynomial, row in its group); the polynomials.
    places, start = 8 + 8 * 9, 8 + 12 * 9
    assert len(good) == start + bfv_coefficients.DEGREE * 60 // 8
    assert parties.operand.products.layout.group == 16
    bad = [
        b"",
        good[:3],
        good[:4],
        good[:start],
        good[:-1],
        good + b"\0",
        struct.pack("<I", 8) + good[4:],
        struct.pack("<I", 0) + good[4:],
        struct.pack("<I", 1 << 31) + good[4:],
        struct.pack("<I", 10) + good[4:8] + bytes(12) + good[8:],  # more words than were agreed
        struct.pack("<II", 9, 0) + good[8:start],
        struct.pack("<II", 9, 2) + good[8:],
        struct.pack("<II", 1, 2) + good[8:16] + bytes(4) + 2 * good[start:],  # more polynomials than words
        good[:8] + b"\xff" * 8 + good[16:],  # words above the prime
        good[:start] + b"\xff" * 15 + good[start + 15 :],
        good[:places] + struct.pack("<2H", 1, 0) + good[places + 4 :],  # a polynomial too many
        good[:places] + struct.pack("<2H", 0, 16) + good[places + 4 :],  # a row beyond the group
        good[: places + 4] + good[places : places + 4] + good[places + 8 :],  # one word twice
    ]
    sent = parties.links[1].sent.copy()
    for payload in bad:
        with pytest.raises(LinkError):
            parties.theirs.answer(Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(payload)), release_all)
    with pytest.raises(LinkError):
        parties.theirs.answer(Received(MessageKind.PRODUCT, 0, 0, memoryview(good)), release_all)
    assert parties.links[1].sent == sent
    # A flipped bit inside a word cannot be told from another ciphertext, but must not crash.
    generator = np.random.default_rng(0)
    for position in generator.integers(4, len(good), 20):
        flipped = bytearray(good)
        flipped[position] ^= 1 << int(generator.integers(8))
        try:
            parties.theirs.answer(Received(MessageKind.REPLY_CIPHERTEXTS, 0, 0, memoryview(flipped)), release_all)
        except LinkError:
            continue


@pytest.mark.parametrize("answer", [b"", bytes(15), bytes(24), b"\xff" * 16])
def test_malformed_answers_are_refused(answer: bytes) -> None:
    parties, values = Parties(), torch.arange(-50, 50)
    parties.send(header_of(values, 2), values)
    parties.links[1].send(MessageKind.MASKED_RESULT, answer)
    with pytest.raises(LinkError, match="MASKED_RESULT"):
        parties.operand.multiply(torch.ones(2, 100, dtype=torch.int64))


def _truncate(batch: list[np.ndarray]) -> list[np.ndarray]:
    return [batch[0][:-7], *batch[1:]]


def _flip_size(batch: list[np.ndarray]) -> list[np.ndarray]:
    first = batch[0].copy()
    first[8] ^= 1
    return [first, *batch[1:]]


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_size,
        lambda batch: batch[:-1],
        lambda batch: [*batch, batch[0]],
        lambda batch: [b.astype(np.int64) for b in batch],
        lambda batch: [b[:0] for b in batch],
        lambda batch: [np.zeros(1 << 19, np.uint8) for _ in batch],
    ],
)
def test_malformed_operands_are_refused(damage: Callable[[list[np.ndarray]], list[np.ndarray]]) -> None:
    source, target = Parties(), Parties()
    values = torch.arange(-1000, 1000)
    header = header_of(values, 8)
    source.fixed.open(header, values)
    key = bytes(source.links[0].receive(MessageKind.PUBLIC_KEY).payload)
    _, batch = unpack(source.links[0].receive(MessageKind.OPERAND_CIPHERTEXTS).payload)
    target.links[1].send(MessageKind.PUBLIC_KEY, key)
    target.links[1].send(MessageKind.OPERAND_CIPHERTEXTS, pack({}, damage(batch)))
    with pytest.raises(LinkError, match="OPERAND_CIPHERTEXTS"):
        target.moving.open(header)


@pytest.mark.parametrize("key", [b"", bytes(1000), bytes(2 << 20)])
def test_malformed_keys_are_refused(key: bytes) -> None:
    parties, values = Parties(), torch.arange(10)
    parties.links[1].send(MessageKind.PUBLIC_KEY, key)
    with pytest.raises(PpirError, match="PUBLIC_KEY"):
        parties.moving.open(header_of(values, 1))
