"""Which protocol is the cheapest for a run, and why: `backend: auto`.

Times are a model: work per product, measured on two cores by `python benchmarks/scaling.py`, plus bytes over the
network between the sites. Only the order of the protocols matters; nothing reports these figures as measured.

>>> choose(56_797, 6, 2, bandwidth_mbit=1000, dealer=False).name
'bfv'
>>> choose(902_629, 12, 3, bandwidth_mbit=1000, dealer=True).name
'beaver'
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Choice", "Cost", "choose", "costs"]

PRODUCTS = 30  # of a run; most of them at the finest level
LARGE = 1 << 18  # points above which an affine product goes by moments under encryption


@dataclass(frozen=True)
class Cost:
    """Of one protocol: seconds at work and bytes sent, for one product and once for the operand."""

    product_seconds: float
    product_bytes: float
    set_up_seconds: float
    set_up_bytes: float

    def seconds(self, bandwidth_mbit: float, products: int = PRODUCTS) -> float:
        """Of a run over a network of this bandwidth."""
        sent = products * self.product_bytes + self.set_up_bytes
        return products * self.product_seconds + self.set_up_seconds + 8e-6 * sent / bandwidth_mbit


@dataclass(frozen=True)
class Choice:
    """The chosen protocol, and one line that says why."""

    name: str
    reason: str


def costs(points: int, parameters: int, dimension: int) -> dict[str, Cost]:
    """The secure protocols' costs for an operand of N points and a transform of P parameters."""
    affine = parameters == dimension * (dimension + 1)
    moments = (dimension + 1, dimension + 1)
    rows, columns = moments if affine else (parameters + 1, 1)
    work = points * (8e-9 * rows + 2e-9 * rows * columns)
    one_sided = Cost(work, 6.0 * rows * points, 1e-8 * columns * points, 6.0 * columns * points)
    shared = Cost(5e-8 * points * (rows + columns), 16.0 * (rows + columns) * points, 1e-8 * columns * points, 0)
    rows, columns = moments if affine and points > LARGE else (parameters + 1, 1)
    group = 1 if points > LARGE else min(8, rows)
    blocks = -(-points * group // 8192)
    plain = -(-rows // group) * blocks
    encrypted = Cost(
        6e-4 * plain + 3.6e-4 * plain * columns + 0.01,
        6.2e4 * -(-rows // group) * columns,
        4e-3 * blocks * columns,
        1.85e5 * blocks * columns,
    )
    return {"beaver": one_sided, "spdz": shared, "bfv": encrypted}


def choose(points: int, parameters: int, dimension: int, bandwidth_mbit: float, dealer: bool) -> Choice:
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
        if dealer or name == "bfv"
    }
    best, *others = sorted(table, key=lambda name: table[name])
    size = f"N={points:,}, P={parameters}, {bandwidth_mbit:g} Mbit/s"
    if not dealer:
        return Choice(best, f"{best}: without a dealer encryption is what is left ({size})")
    rest = ", ".join(f"{name} {table[name]:.2g} s" for name in others)
    return Choice(best, f"{best}: about {table[best]:.2g} s for {PRODUCTS} products, against {rest} ({size})")
