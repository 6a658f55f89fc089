"""What a protocol's products cost, as a model: work measured on two cores by `python benchmarks/scaling.py`, and bytes.

Only the order of the protocols matters, for `backend: auto`; nothing reports these figures as measured.

>>> one_sided(Product(points=1000, parameters=6, dimension=2)).product_bytes
18000.0
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRODUCTS", "Cost", "Product", "encrypted", "one_sided", "shared"]

PRODUCTS = 30  # of a run; most of them at the finest level
LARGE = 1 << 18  # points above which an affine product goes by moments under encryption


@dataclass(frozen=True)
class Product:
    """The sizes of a product: N points of the operand, P parameters of the transform, in D dimensions."""

    points: int
    parameters: int
    dimension: int

    def shape(self, moments: bool = True) -> tuple[int, int]:
        """Rows and columns; an affine transform's by moments, where it may."""
        affine = self.parameters == self.dimension * (self.dimension + 1)
        return (self.dimension + 1, self.dimension + 1) if affine and moments else (self.parameters + 1, 1)


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


def one_sided(product: Product) -> Cost:
    """Of beaver."""
    points, (rows, columns) = product.points, product.shape()
    work = points * (8e-9 * rows + 2e-9 * rows * columns)
    return Cost(work, 6.0 * rows * points, 1e-8 * columns * points, 6.0 * columns * points)


def shared(product: Product) -> Cost:
    """Of spdz."""
    points, (rows, columns) = product.points, product.shape()
    return Cost(5e-8 * points * (rows + columns), 16.0 * (rows + columns) * points, 1e-8 * columns * points, 0)


def encrypted(product: Product) -> Cost:
    """Of bfv."""
    large = product.points > LARGE
    rows, columns = product.shape(moments=large)
    group = 1 if large else min(8, rows)
    blocks = -(-product.points * group // 8192)
    plain = -(-rows // group) * blocks
    return Cost(
        6e-4 * plain + 3.6e-4 * plain * columns + 0.01,
        6.2e4 * -(-rows // group) * columns,
        4e-3 * blocks * columns,
        1.85e5 * blocks * columns,
    )
