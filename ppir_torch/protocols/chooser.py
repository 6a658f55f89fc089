"""Which protocol is the cheapest for a run, and why: `backend: auto`. The costs are in the protocols' entries.

>>> choose(56_797, 6, 2, bandwidth_mbit=1000, dealer=False).name
'bfv'
>>> choose(902_629, 12, 3, bandwidth_mbit=1000, dealer=True).name
'beaver'
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config.costs import PRODUCTS, Cost, Product
from ..config.protocols import PROTOCOLS

__all__ = ["ProtocolChoice", "choose", "costs"]


@dataclass(frozen=True)
class ProtocolChoice:
    """The chosen protocol, and one line that says why."""

    name: str
    reason: str


def costs(points: int, parameters: int, dimension: int) -> dict[str, Cost]:
    """The secure protocols' costs for an operand of N points and a transform of P parameters."""
    product = Product(points, parameters, dimension)
    return {entry.name: entry.cost(product) for entry in PROTOCOLS if entry.cost is not None and not entry.insecure}


def choose(points: int, parameters: int, dimension: int, bandwidth_mbit: float, dealer: bool) -> ProtocolChoice:
    """The protocol with the shortest expected run.

    Args:
        points: N of the finest level.
        parameters: P of the transform.
        dimension: 2 or 3.
        bandwidth_mbit: of the network between the parties, Mbit/s.
        dealer: whether there is a third party, working with neither, that can make triples.
    """
    table = {
        name: cost.seconds(bandwidth_mbit)
        for name, cost in costs(points, parameters, dimension).items()
        if dealer or not PROTOCOLS[name].dealer
    }
    best, *others = sorted(table, key=lambda name: table[name])
    size = f"N={points:,}, P={parameters}, {bandwidth_mbit:g} Mbit/s"
    if not dealer:
        return ProtocolChoice(best, f"{best}: without a dealer encryption is what is left ({size})")
    rest = ", ".join(f"{name} {table[name]:.2g} s" for name in others)
    return ProtocolChoice(best, f"{best}: about {table[best]:.2g} s for {PRODUCTS} products, against {rest} ({size})")
