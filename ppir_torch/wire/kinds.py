"""Every kind of message that may cross between two parties. What is not in this list is never sent.

>>> MessageKind.OPERAND.is_set_up, MessageKind.MASKED_ROWS.is_set_up
(True, False)
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["MessageKind"]


class MessageKind(IntEnum):
    """Every kind of message that may cross a Link. What is not in this list is never sent."""

    # session
    HELLO = 1  # both ways: version, protocol, public configuration
    GEOMETRY = 2  # party_2 -> party_1: size, spacing, origin, direction of the fixed grid
    LEVEL = 3  # party_1 -> party_2: prepare the operand of this resolution level, or of a point set
    OPERAND = 4  # party_2 -> party_1: the operand's public header
    FINISH = 5  # party_1 -> party_2: the run is over
    ABORT = 6  # any: a clear line saying why this party stops
    SAMPLE = 7  # party_1 -> party_2: point indices of a gradient-magnitude sample
    OPERAND_IN_USE = 8  # party_1 -> party_2: the products that follow are with this operand, not with the last one
    # protocol set-up
    PUBLIC_KEY = 20  # bfv, party_2 -> party_1
    OPERAND_CIPHERTEXTS = 21  # bfv, party_2 -> party_1
    SEED = 22  # spdz and beaver, dealer -> party: the key of its share of the triples
    ZERO_SEED = 23  # spdz, party_2 -> party_1: the key of the sharings of zero
    OPENED_OPERAND = 24  # beaver, party_2 -> party_1: the operand less its mask
    PUBLIC_MAP = 26  # party_1 -> dealer: the public linear map of an operand's products
    GALOIS_KEYS = 25  # ckks-v1, party_2 -> party_1: its public and rotation keys
    EXTENSION_SET_UP = 38  # a protocol from outside the package: its set-up
    # protocol, every product
    PRODUCT = 40  # spdz, party_1 -> party_2: the shape of the next product
    REPLY_CIPHERTEXTS = 41  # bfv and ckks, party_1 -> party_2: masked result ciphertexts
    MASKED_RESULT = 42  # bfv and ckks, party_2 -> party_1: decrypted masked words
    TRIPLE = 43  # spdz and beaver, party_1 -> dealer: the shape of the next triple
    TRIPLE_CORRECTION = 44  # spdz and beaver, dealer -> party: its explicit share of the triple's product
    OPENING = 45  # spdz, both ways: shares of the masked differences
    RESULT_SHARE = 46  # spdz and beaver, party_2 -> party_1: its share of the result
    MASKED_ROWS = 47  # beaver, party_1 -> party_2: the rows less their mask
    NAIVE_REPLY = 48  # ckks-v1, party_1 -> party_2: result ciphertexts, neither masked nor flooded
    NAIVE_RESULT = 49  # ckks-v1, party_2 -> party_1: decrypted results
    EXTENSION_REQUEST = 60  # a protocol from outside the package, party_1 -> party_2: begins a product
    EXTENSION_ANSWER = 61  # a protocol from outside the package, between the parties: the rest of a product
    EXTENSION_DEALER = 62  # a protocol from outside the package, to or from its dealer

    @property
    def is_set_up(self) -> bool:
        """True for the messages that are sent once a session or once a level, not once a product."""
        return self < 40
