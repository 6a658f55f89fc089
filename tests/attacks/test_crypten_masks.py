"""Attacks 1, 2 and 5 of docs/threat-model.md: each reads an image from stock CrypTen or a naive one, not from ours.

The attacker is always one of the two parties and uses only its own view: its input, what it drew, what was opened.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppir_torch.arithmetic.csprng import KeyStream, new_key
from ppir_torch.joint.header import OperandHeader
from ppir_torch.joint.interface import release_all
from ppir_torch.protocols import crypten_link
from ppir_torch.protocols.spdz import SpdzFixedSide, SpdzMovingSide, serve_dealer
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair

crypten = crypten_link.crypten
CPU = torch.device("cpu")
Words = NDArray[np.int64]


class Views:
    """What the threads named party_1 and party_2 see: opened (e, d) of each product, and every word they draw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: dict[str, list[tuple[Words, Words]]] = defaultdict(list)
        self.drawn: dict[str, dict[tuple[str, int], Words]] = defaultdict(dict)
        all_reduce, words = crypten_link.LinkCommunicator.all_reduce, KeyStream.words

        def record_opened(comm: Any, shares: Any, batched: bool = False) -> Any:
            result = all_reduce(comm, shares, batched=batched)
            e, d = (part.numpy().copy() for part in result)
            self.opened[threading.current_thread().name].append((e, d.reshape(-1)))
            return result

        def record_words(
            stream: KeyStream, purpose: str, counter: int, shape: tuple[int, ...], bits: int = 64
        ) -> Words:
            result = words(stream, purpose, counter, shape, bits)
            column = purpose in ("b", "Y")  # the words of the operand's column, as (points, 1) and (1, points)
            copied = result.reshape(-1).copy() if column else result.copy()
            self.drawn[threading.current_thread().name][purpose, counter] = copied
            return result

        monkeypatch.setattr(crypten_link.LinkCommunicator, "all_reduce", record_opened)
        monkeypatch.setattr(KeyStream, "words", record_words)


def in_threads(**work: Callable[[], None]) -> list[BaseException]:
    """Run each party in a thread of its name; the errors they ended with."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), name=name, daemon=True) for name, task in work.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


def our_products(rows: list[Tensor], y: Tensor, between: Callable[..., None] | None = None) -> list[BaseException]:
    """Products of our spdz with one operand; `between(side)` runs in each party after each product."""
    one_two, two_one = link_pair("party_1", "party_2", timeout=120)
    one_dealer, dealer_one = link_pair("party_1", "dealer", timeout=120)
    two_dealer, dealer_two = link_pair("party_2", "dealer", timeout=120)
    header = OperandHeader(0, len(y), len(rows[0]), 1.0, 0.0, int(y.abs().max()), int((y * y).sum()))

    def party_1() -> None:
        try:
            side = SpdzMovingSide(one_two, one_dealer)
            operand = side.open(header)
            for x in rows:
                result = operand.multiply(x)
                if between is None:
                    assert torch.equal(result, x @ y)
                else:
                    between(side)
        finally:
            for link in (one_two, one_dealer):
                link.close()

    def party_2() -> None:
        side = SpdzFixedSide(two_one, two_dealer)
        operand = side.open(header, y)
        for _ in rows:
            operand.answer(two_one.receive(MessageKind.PRODUCT), release_all)
            if between is not None:
                between(side)

    return in_threads(party_1=party_1, party_2=party_2, dealer=lambda: serve_dealer(dealer_one, dealer_two))


def images(points: int = 4000, rows: int = 2) -> tuple[Tensor, Tensor]:
    """Rows X and an operand Y with black background over the first half, as a medical image has."""
    draw = np.random.default_rng(3)
    x, y = draw.integers(-(2**20), 2**20, (rows, points)), draw.integers(-128, 128, points)
    x[:, : points // 2] = 0
    y[: points // 2] = 0
    return torch.from_numpy(x), torch.from_numpy(y)


def says_nothing(guess: Words, truth: Words) -> bool:
    """No word is right, and guess and truth do not correlate (7 sigma: a test asks up to 18 times)."""
    flat, true = guess.reshape(-1), truth.reshape(-1)
    assert flat.size == true.size
    shown = true != 0
    correlation = np.corrcoef(flat[shown].astype(float), true[shown].astype(float))[0, 1]
    return not np.any(flat == true) and abs(correlation) < 7 / np.sqrt(shown.sum())


# 1. The trusted first party makes the triples, so it knows b and reads Y = d + b.


class _PerThread(dict[str, Any]):
    """crypten.generators of two parties that run in two threads of one process."""

    def __init__(self, parties: dict[str, dict[str, dict[torch.device, torch.Generator]]]) -> None:
        self.parties = parties

    def __getitem__(self, name: str) -> Any:
        return self.parties[threading.current_thread().name][name]


def stock_generators() -> _PerThread:
    """As crypten.init() seeds them: 'prev' and 'next' agreed between neighbours, 'local' one's own."""

    def seeded(**seeds: int) -> dict[str, dict[torch.device, torch.Generator]]:
        return {name: {CPU: torch.Generator().manual_seed(seed)} for name, seed in seeds.items()}

    return _PerThread({"party_1": seeded(prev=1, next=2, local=3), "party_2": seeded(prev=2, next=1, local=4)})


def test_trusted_first_party_reads_the_operand(monkeypatch: pytest.MonkeyPatch) -> None:
    crypten_link.install()
    views = Views(monkeypatch)
    monkeypatch.setattr(crypten, "generators", stock_generators())
    shared_tensor = crypten.mpc.primitives.ArithmeticSharedTensor
    x, y = images()
    links = dict(zip(("party_1", "party_2"), link_pair("party_1", "party_2"), strict=True))
    stolen: list[Tensor] = []

    def stock_party(rank: int, name: str) -> None:
        with crypten_link.LinkCommunicator(rank, links[name], lambda a, b: pytest.fail(f"dealer asked {a} {b}")):
            left = shared_tensor(x if rank == 0 else torch.zeros_like(x), precision=0, src=0)
            right = shared_tensor(y if rank == 1 else torch.zeros_like(y), precision=0, src=1)
            mine = crypten.generators["local"][CPU].clone_state()  # rank 0 may always look at its own generator
            result = left.matmul(right).reveal(dst=0)
        if rank == 0:
            assert torch.equal(result, x @ y)
            crypten.common.rng.generate_random_ring_element(x.shape, generator=mine)
            b = crypten.common.rng.generate_random_ring_element(y.shape, generator=mine)
            stolen.append(torch.from_numpy(views.opened[name][0][1]) + b)

    with crypten.cfg.temp_override({"mpc.provider": "TFP"}):
        errors = in_threads(party_1=lambda: stock_party(0, "party_1"), party_2=lambda: stock_party(1, "party_2"))
    assert errors == []
    assert torch.equal(stolen[0], y)


def test_party_1_cannot_read_the_operand_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(monkeypatch)
    x, y = images()
    assert our_products([x, x], y) == []
    mine = views.drawn["party_1"]
    for number in (0, 1):
        e, d = views.opened["party_1"][number]
        b1, z = mine["b", number], mine["Y", 0]
        for guess in (d, d + b1, d + b1 + z, d + b1 - z, d - z, d + mine["a", number][0]):
            assert says_nothing(guess, y.numpy())
        e_2, d_2 = views.opened["party_2"][number]
        theirs = views.drawn["party_2"]
        for guess in (e_2, e_2 + theirs["a", number], e_2 + theirs["a", number] + theirs["X", number]):
            assert says_nothing(guess, x.numpy())
        assert np.array_equal(d, d_2)
        assert np.array_equal(e, e_2)
        # positive control: with both masks, which only the dealer holds, the same formula reads both images
        assert np.array_equal(d + b1 + theirs["b", number], y.numpy())
        assert np.array_equal(e + mine["a", number] + theirs["a", number], x.numpy())


# 2. MT19937: 624 consecutive 32-bit outputs say all that follow; black background shows them.


def untemper(output: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """MT19937's state words from its outputs (uint32 values); each step of the tempering is undone in turn."""
    y = output ^ (output >> 18)
    y ^= (y << 15) & 0xEFC60000
    low = y.copy()
    for _ in range(5):
        low = y ^ ((low << 7) & 0x9D2C5680)
    y = low & 0xFFFFFFFF
    high = y.copy()
    for _ in range(3):
        high = y ^ (high >> 11)
    return high


def temper(y: int) -> int:
    y ^= y >> 11
    y ^= (y << 7) & 0x9D2C5680
    y ^= (y << 15) & 0xEFC60000
    return y ^ (y >> 18)


def predict_words(seen: Words, count: int) -> Words:
    """The `count` int64 words that torch.randint(-2^63, 2^63 - 1) draws after 312 consecutive ones."""
    random64 = seen.reshape(-1)[:312].view(np.uint64) + np.uint64(1 << 63)  # randint added the lower bound
    halves = np.stack([random64 >> np.uint64(32), random64 & np.uint64(0xFFFFFFFF)], axis=1).reshape(-1)
    state = [int(v) for v in untemper(halves)]
    for i in range(2 * count):
        mixed = (state[i] & 0x80000000) | (state[i + 1] & 0x7FFFFFFF)
        state.append(state[i + 397] ^ (mixed >> 1) ^ (0x9908B0DF if mixed & 1 else 0))
    out = np.array([temper(v) for v in state[624:]], dtype=np.uint64).reshape(-1, 2)
    return ((out[:, 0] << np.uint64(32)) + out[:, 1] - np.uint64(1 << 63)).view(np.int64)


def read_behind_the_background(difference: Words) -> Words:
    """The attack on X - a where X is black over its first 312 points: there it shows -a, which predicts the rest."""
    flat = difference.reshape(-1)
    return flat[312:] + predict_words(-flat[:312], flat.size - 312)


@pytest.mark.parametrize("seed", [0, 2**40 + 1])
def test_masks_of_stock_crypten_are_predicted_from_the_background(seed: int) -> None:
    x, _ = images()
    generator = torch.Generator().manual_seed(seed)
    masks = crypten.common.rng.generate_random_ring_element(x.shape, generator=generator)
    assert np.array_equal(read_behind_the_background((x - masks).numpy()), x.numpy().reshape(-1)[312:])


def test_masks_of_a_key_stream_are_not_predicted() -> None:
    x, _ = images()
    masks = KeyStream(new_key()).words("a", 0, tuple(x.shape))
    assert says_nothing(read_behind_the_background(x.numpy() - masks), x.numpy().reshape(-1)[312:])


def test_neither_party_of_ours_reads_behind_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(monkeypatch)
    x, y = images()
    assert our_products([x], y) == []
    e, d = views.opened["party_2"][0]
    one, two = views.drawn["party_1"], views.drawn["party_2"]
    for difference in (e, e + two["a", 0], e + two["a", 0] - two["X", 0]):  # party_2 removes what it drew itself
        assert says_nothing(read_behind_the_background(difference), x.numpy().reshape(-1)[312:])
    for difference in (d, d + one["b", 0], d + one["b", 0] - one["Y", 0]):
        assert says_nothing(read_behind_the_background(difference), y.numpy()[312:])
    # what each party learns of the other's stream (a2 from e, b1 from d) predicts nothing either
    for learnt, following in ((two["a", 0], two["b", 0]), (one["b", 0], one["a", 0].reshape(-1))):
        assert not np.any(predict_words(learnt, following.size) == following)


# 5. One triple for several products opens the differences of the inputs.


def rewind(side: Any) -> None:
    side.party._triples = 0


def test_a_reused_triple_opens_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(stream: KeyStream, *args: Any) -> Words:
        stream._used.clear()
        return words(stream, *args)

    words = KeyStream.words
    monkeypatch.setattr(KeyStream, "words", forget)  # the naive variant: nothing stops a second draw
    views = Views(monkeypatch)
    x, y = images()
    assert our_products([x, 3 * x + 1], y, between=rewind) == []
    (first, _), (second, _) = views.opened["party_2"]
    assert np.array_equal(second - first, (2 * x + 1).numpy())


def test_ours_refuses_to_reuse_a_triple(monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(monkeypatch)
    x, y = images()
    errors = our_products([x, 3 * x + 1], y, between=rewind)
    assert any(isinstance(e, ValueError) and "already used" in str(e) for e in errors)
    assert len(views.opened["party_2"]) == 1


def test_two_products_of_ours_open_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(monkeypatch)
    x, y = images()
    assert our_products([x, 3 * x + 1], y) == []
    (first, d_first), (second, d_second) = views.opened["party_2"]
    assert says_nothing(second - first, (2 * x + 1).numpy())
    assert not np.any(d_first == d_second)  # Y did not change, its mask did
