"""Smoothness of a cubic B-spline displacement field, exactly and on its control points alone.

    u(x) = sum_k c_k beta(x - k),   k = 0 ... m - 1 along each axis,   x in [1, m - 2] (m - 3 cells)

The energies are means over this domain, so they do not change with the resolution of image or lattice:

- "diffusion": sum_ij (du_i / dx_j)^2, without unit.
- "bending": sum_ijk (d2 u_i / dx_j dx_k)^2, cross terms twice, per mm^2 (Rueckert et al., TMI 1999, equation 5).
- "elastic": mu / 4 sum_ij (du_i / dx_j + du_j / dx_i)^2 + lambda / 2 (div u)^2, the linear elastic energy (as in
  Modersitzki, Numerical Methods for Image Registration, 2004, section 9.2).

Each is a sum of Kronecker products of the splines' Gram matrices, one per axis (the analytic form of Shackleford et
al., MICCAI 2012), so the largest matrix is that of one axis.

>>> bending = Regulariser.of("bending", size=(7, 6), spacing_mm=(4.0, 4.0))
>>> c = torch.zeros(2, 6, 7, dtype=torch.float64)
>>> c[0] = 0.5 * ((torch.arange(7.0) - 1) ** 2 - 1 / 3)  # u_x = x^2 / 2 with x in cells of 4 mm
>>> round(float(bending.value(c) * 4.0**4), 6)
1.0
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, ImageError
from ..grids import Grid

__all__ = ["Regulariser", "gram_matrices"]

Kind = Literal["diffusion", "bending", "elastic"]


@dataclass(frozen=True)
class _Term:
    """One Kronecker product of a Hessian: result[rows] += weight (G_z x) G_y x G_x c[columns].

    Attributes:
        rows: component of the result; None: each component alike.
        columns: component of c, None as above.
        weight: per mm^2 or mm^4.
        orders: along x, y[, z], which derivative of the row's and of the column's splines is integrated.
    """

    rows: int | None
    columns: int | None
    weight: float
    orders: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Regulariser:
    """A quadratic energy 1/2 <c, H c> of B-spline coefficients c (D, [mz,] my, mx) in mm; built by `of`.

    Coefficients may be of any floating dtype and device; sums are float64 whatever it is, and results are of their
    dtype.

    Attributes:
        kind: "diffusion", "bending" or "elastic".
        lattice: the control points: their number, spacing and direction (its origin says nothing).
    """

    kind: Kind
    lattice: Grid
    _terms: tuple[_Term, ...] = field(repr=False)

    @property
    def order(self) -> int:
        """Of the derivatives whose squares it sums up: 1 or 2."""
        return 2 if self.kind == "bending" else 1

    @classmethod
    def of(
        cls,
        kind: str,
        size: tuple[int, ...],
        spacing_mm: tuple[float, ...],
        direction: tuple[float, ...] = (),
        *,
        mu: float = 1.0,
        lam: float = 1.0,
    ) -> Regulariser:
        """The energy of one kind on one control lattice.

        Args:
            kind: "diffusion", "bending" or "elastic".
            size: control points along x, y[, z], at least four each (one cell).
            spacing_mm: between control points along the same axes.
            direction: of the lattice's axes as in `Grid`, row-major; default identity. Only "elastic" depends on it.
            mu: shear modulus, positive; of "elastic" only.
            lam: first Lame parameter, not negative; of "elastic" only.

        Raises:
            ConfigError: an unknown kind, a lattice that is none or has no cell, a modulus out of range.
        """
        if kind not in get_args(Kind):
            raise ConfigError(f"regulariser: {kind!r}, one of {', '.join(get_args(Kind))} is needed")
        if not (math.isfinite(mu) and mu > 0 and math.isfinite(lam) and lam >= 0):
            raise ConfigError(f"regulariser: mu {mu} and lambda {lam}, mu above 0 and lambda from 0 up are needed")
        try:
            lattice = Grid(size, spacing_mm, direction=direction)
        except ImageError as error:
            raise ConfigError(f"control lattice: {error}") from None
        if min(lattice.size) < 4:
            raise ConfigError(f"control lattice: {lattice.size} points, every axis needs at least four")
        if kind == "elastic":
            terms = _elastic_terms(lattice.dimension, mu, lam)
        else:
            terms = _isotropic_terms(lattice.dimension, 1 if kind == "diffusion" else 2)
        cells = math.prod(n - 3 for n in lattice.size)
        return cls(kind, lattice, tuple(_in_mm(term, lattice.spacing, cells) for term in terms))  # type: ignore[arg-type]

    def value(self, coefficients: Tensor) -> Tensor:
        """The energy, a scalar; differentiable, its gradient is `apply(coefficients)`.

        Raises:
            ConfigError: coefficients (D, [mz,] my, mx) of another shape, or not floating.
        """
        exact = coefficients.double()
        return (0.5 * (exact * self.apply(exact)).sum()).to(coefficients.dtype)

    def apply(self, coefficients: Tensor) -> Tensor:
        """H c, of the shape of c (D, [mz,] my, mx); linear and symmetric, so it serves conjugate gradients.

        Raises:
            ConfigError: coefficients of another shape, or not floating.
        """
        shape = (self.lattice.dimension, *self.lattice.shape)
        if tuple(coefficients.shape) != shape or not coefficients.is_floating_point():
            raise ConfigError(
                f"coefficients: {tuple(coefficients.shape)} {coefficients.dtype}, {shape} floating is needed"
            )
        turned = self._turn(coefficients.double(), back=True)
        parts = [torch.zeros_like(part) for part in turned]
        if self.kind == "elastic":
            for term in self._terms:
                assert term.rows is not None
                assert term.columns is not None
                parts[term.rows] = parts[term.rows] + self._product(term, turned[term.columns][None])[0]
            result = torch.stack(parts)
        else:
            result = torch.stack([self._product(term, turned) for term in self._terms]).sum(0)
        return self._turn(result, back=False).to(coefficients.dtype)

    def diagonal(self) -> Tensor:
        """The diagonal of H, (D, [mz,] my, mx) float64: positive, the preconditioner of Jacobi."""
        d = self.lattice.dimension
        table = torch.zeros(d, d, *self.lattice.shape, dtype=torch.float64)
        for term in self._terms:
            # Axes come as x, y[, z]; the tensor's are their reverse.
            lines = [gram_matrices(n)[pq].diagonal() for n, pq in zip(self.lattice.size, term.orders, strict=True)]
            product = term.weight * functools.reduce(lambda low, high: torch.tensordot(high, low, dims=0), lines)
            if term.rows is None:
                table += torch.eye(d, dtype=torch.float64).reshape(d, d, *[1] * d) * product
            else:
                table[term.rows, term.columns] += product
        axes = torch.tensor(self.lattice.direction, dtype=torch.float64).reshape(d, d)
        diagonal: Tensor = torch.einsum("ia,ib,ab...->i...", axes, axes, table)
        return diagonal

    def _product(self, term: _Term, components: Tensor) -> Tensor:
        """weight (G_z x) G_y x G_x applied to each component: (components, [mz,] my, mx) to the same."""
        result = components * term.weight
        for n, orders in zip(self.lattice.size, term.orders, strict=True):
            # The last axis is contracted and goes to the front: after every axis the order is the old one.
            result = (result @ _gram_on(result.device, n, orders).T).movedim(-1, 1)
        return result

    def _turn(self, vectors: Tensor, back: bool) -> Tensor:
        """Physical components from those along the lattice's axes; `back`: the other way round."""
        if self.kind != "elastic":
            return vectors
        axes = torch.tensor(self.lattice.direction, dtype=vectors.dtype, device=vectors.device)
        axes = axes.reshape(vectors.shape[0], -1)
        turned: Tensor = torch.tensordot(axes.T if back else axes, vectors, dims=1)
        return turned


@functools.lru_cache(maxsize=64)
def gram_matrices(count: int) -> Tensor:
    """Integrals of the products of derivatives of `count` cubic B-splines over their domain [1, count - 2].

    Args:
        count: control points m along one axis, at least 4, one apart.

    Returns:
        (3, 3, m, m) float64; [p, q, a, b] is the integral of beta^(p)(x - a) beta^(q)(x - b), exact to rounding: the
        integrands are polynomials of degree 6 or less on each cell, and Gauss-Legendre takes four points there. One
        tensor serves every caller: do not write to it.

    >>> [round(5040 * float(v)) for v in gram_matrices(9)[0, 0, 4, 4:8]]
    [2416, 1191, 120, 1]
    """
    if count < 4:
        raise ConfigError(f"B-splines: {count} control points, at least four are needed")
    nodes, weights = np.polynomial.legendre.leggauss(4)
    t = torch.from_numpy((nodes + 1) / 2)
    s = 1 - t
    pieces = [
        [s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6],
        [-(s**2) / 2, (3 * t**2 - 4 * t) / 2, -(3 * s**2 - 4 * s) / 2, t**2 / 2],
        [s, 3 * t - 2, 3 * s - 2, t],
    ]
    values = torch.stack([torch.stack(row) for row in pieces])  # (derivative, spline, node)
    cell = torch.einsum("pan,qbn,n->pqab", values, values, torch.from_numpy(weights / 2))
    result = torch.zeros(3, 3, count, count, dtype=torch.float64)
    for first in range(count - 3):
        result[:, :, first : first + 4, first : first + 4] += cell
    return result


@functools.lru_cache(maxsize=256)
def _gram_on(device: torch.device, count: int, orders: tuple[int, int]) -> Tensor:
    """(m, m) of `gram_matrices`, on a device: conjugate gradients ask for it some thirty times an iteration."""
    return gram_matrices(count)[orders].to(device)


def _isotropic_terms(dimension: int, order: int) -> list[_Term]:
    """H of sum_i sum (every derivative of that order of u_i)^2, the same for each component."""
    terms = []
    for axes in itertools.product(range(dimension), repeat=order):
        if list(axes) == sorted(axes):
            times = len(set(itertools.permutations(axes)))  # a cross derivative counts twice
            orders = tuple((axes.count(axis),) * 2 for axis in range(dimension))
            terms.append(_Term(None, None, 2.0 * times, orders))
    return terms


def _elastic_terms(dimension: int, mu: float, lam: float) -> list[_Term]:
    """H of mu / 2 sum_ij [(d_j u_i)^2 + d_j u_i d_i u_j] + lambda / 2 sum_ij d_i u_i d_j u_j, expanded."""
    weights: dict[tuple[int, int, tuple[tuple[int, int], ...]], float] = defaultdict(float)
    for i, j in itertools.product(range(dimension), repeat=2):
        weights[i, i, _orders(dimension, j, j)] += mu
        weights[i, j, _orders(dimension, j, i)] += mu
        weights[i, j, _orders(dimension, i, j)] += lam
    return [_Term(i, j, weight, orders) for (i, j, orders), weight in weights.items()]


def _orders(dimension: int, row: int, column: int) -> tuple[tuple[int, int], ...]:
    """First derivatives: of the row's splines along axis `row`, of the column's along axis `column`."""
    return tuple((int(axis == row), int(axis == column)) for axis in range(dimension))


def _in_mm(term: _Term, spacing: tuple[float, ...], cells: int) -> _Term:
    """Derivatives per mm in place of per cell, the mean over the cells in place of their sum."""
    scale = math.prod(s ** -(p + q) for s, (p, q) in zip(spacing, term.orders, strict=True))
    return _Term(term.rows, term.columns, term.weight * scale / cells, term.orders)
