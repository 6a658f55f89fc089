"""The links of one run: who is connected with whom, by which ends, and with which keys two ends know each other.

>>> from ppir_torch.transport.local import LocalTransport
>>> wiring = wire(LocalTransport(60), with_dealer=False)
>>> list(wiring.ends), wiring.keys["party_1"] == {"party_2": wiring.keys["party_2"]["party_1"]}
(['party_1', 'party_2'], True)
>>> wiring.close()
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..wire.link import Link
from .interface import LinkEnd, Transport

__all__ = ["Wiring", "link_keys", "open_links", "wire"]


@dataclass(frozen=True)
class Wiring:
    """The links of one run, before anybody has opened them.

    Attributes:
        session: 16 bytes, the same for all roles.
        ends: role -> peer -> this role's end.
        keys: role -> peer -> the 16 secret bytes of that link, which only its two ends may have.
    """

    session: bytes
    ends: dict[str, dict[str, LinkEnd]]
    keys: dict[str, dict[str, bytes]]

    def close(self) -> None:
        """Close this program's copies of all ends."""
        for peers in self.ends.values():
            for end in peers.values():
                end.close()


def wire(transport: Transport, with_dealer: bool) -> Wiring:
    """Connect party_1 with party_2, and both with a dealer where the protocol has one."""
    pairs = [("party_1", "party_2")]
    if with_dealer:
        pairs += [("party_1", "dealer"), ("party_2", "dealer")]
    ends: dict[str, dict[str, LinkEnd]] = {}
    for one, two in pairs:
        first, second = transport.connect(one, two)
        ends.setdefault(one, {})[two] = first
        ends.setdefault(two, {})[one] = second
    return Wiring(secrets.token_bytes(16), ends, link_keys(ends))


def link_keys(peers_of: Mapping[str, Collection[str]]) -> dict[str, dict[str, bytes]]:
    """role -> peer -> the key of their link: random, the same at both ends, another one for each pair of roles.

    Args:
        peers_of: role -> the roles that it is connected with.
    """
    made = {frozenset((role, peer)): secrets.token_bytes(16) for role, peers in peers_of.items() for peer in peers}
    return {role: {peer: made[frozenset((role, peer))] for peer in peers} for role, peers in peers_of.items()}


def open_links(
    transport: Transport,
    role: str,
    ends: Mapping[str, LinkEnd],
    keys: Mapping[str, bytes],
    session: bytes,
    timeout_s: float,
) -> dict[str, Link]:
    """peer -> the link to it, of one role in its own process.

    Args:
        transport: by which the ends were made.
        role: whose ends they are.
        ends: by peer.
        keys: by peer.
        session: of the run.
        timeout_s: seconds of silence after which a peer counts as lost.

    Raises:
        LinkError: a peer cannot be reached.
    """
    return {
        peer: Link(transport.join(end.description, end.inherited), session, keys[peer], role, peer, timeout_s)
        for peer, end in ends.items()
    }
