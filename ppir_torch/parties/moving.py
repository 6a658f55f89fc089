"""party_1's view of the fixed image: a `FixedSource` whose pixels stay with party_2."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..errors import ConfigError, ImageError, LinkError
from ..grids import Grid
from ..images import Level, level_grid
from ..joint.columns import IMAGE, Columns
from ..joint.interface import MovingSide, OperandHeader
from ..joint.ledger import Ledger
from ..joint.operands import KeptLedger, PrivateOperand
from ..losses import Measure
from ..registration.loop import SSD_MEASURE, Choice, map_of, select_points
from ..sampling import Full, Permuted, Sample, Uniform
from ..transforms import BSpline, Composite, ControlLattice, LinearTransform, VelocityField
from ..wire.kinds import MessageKind
from ..wire.link import Link
from ..wire.payload import pack, unpack

__all__ = ["PrivateFixed", "greet"]


SKETCH = 16_384  # numbers that the ledger keeps of each equation: coarse levels are exact


def greet(link: Link, protocol: str) -> None:
    """Both parties: say who one is and refuse another version or protocol.

    Raises:
        ConfigError: the parties do not run the same version and protocol.
    """
    mine = {"version": __version__, "protocol": protocol}
    link.send(MessageKind.HELLO, pack(mine))
    theirs, _ = unpack(link.receive(MessageKind.HELLO).payload)
    if theirs != mine:
        raise ConfigError(f"{link.peer} runs {str(theirs)[:200]}, this party {mine}; both must be the same")


class PrivateFixed:
    """The fixed image as party_1 sees it: its public geometry, and operands whose products go through a protocol.

    Args:
        link: to party_2, which runs `serve_fixed`.
        side: party_1's end of the protocol.
        protocol: its name; party_2 must run the same.
        with_ledger: keep account of what the opened values say about J.
        most: share of J's variance, beyond party_1's own image, that they may say; the run stops where it is passed.

    Attributes:
        ledgers: one for each operand so far, where they are kept.
        grid: geometry of the fixed image (public).
        mask: its foreground, where party_2's configuration discloses it, else None.
    """

    def __init__(
        self, link: Link, side: MovingSide, protocol: str, with_ledger: bool = True, most: float | None = None
    ) -> None:
        self.link, self._side = link, side
        self._with_ledger, self._most = with_ledger, most
        self.ledgers: list[KeptLedger] = []
        greet(link, protocol)
        meta, arrays = unpack(link.receive(MessageKind.GEOMETRY).payload)
        try:
            self.grid = Grid(*(tuple(meta["grid"][k]) for k in ("size", "spacing", "origin", "direction")))
            self._centre_of_mass = meta["centre_of_mass"]
            self.mask = _unpack_mask(arrays[0], self.grid) if meta["mask"] else None
        except (KeyError, TypeError, IndexError, ValueError, OverflowError, ImageError) as error:
            raise LinkError(f"geometry from {link.peer}: {error!r}") from None

    def centre_of_mass(self) -> Tensor:
        """Centre of mass (D,) of J, mm, where party_2 discloses it.

        Raises:
            ConfigError: party_2 does not.
        """
        if self._centre_of_mass is None:
            raise ConfigError("start: centre_of_mass, but party_2 does not disclose it (data.disclose_centre_of_mass)")
        return torch.tensor(self._centre_of_mass, dtype=torch.float64)

    def prefers_moments(self, points: int) -> bool:
        """As the protocol says."""
        return self._side.prefers_moments(points)

    def operand(
        self,
        level: Level,
        choice: Choice | None = None,
        number: int = 0,
        rows: int = 16,
        columns: Columns = IMAGE,
        lattice: ControlLattice | None = None,
        measure: Measure = SSD_MEASURE,
    ) -> PrivateOperand:
        """Have party_2 prepare the operand of one level.

        Args:
            level: shrink factor and smoothing of the fixed image.
            choice: all points, a uniform sample or an order from a public seed, or indices (disclosed to party_2).
            number: of the level.
            rows: most rows of one product; more are sent in several products.
            columns: what the operand is made of.
            lattice: control points whose public map is applied to the element-wise products; `rows` is D + 1 then.
            measure: what party_2 makes of its image; the one that it agreed to, or it refuses.
        """
        choice = choice or Full()
        coarse, _ = level_grid(self.grid, level)
        _, sample = select_points(self.grid, self.mask, level, choice, number)
        channels = measure.channels(coarse.dimension)
        public_map = None if lattice is None else self._side.carried(map_of(lattice, coarse, sample, channels))
        request = {"level": _level_meta(level), "rows": rows, "choice": _choice_meta(choice)}
        about_map, weights = (None, []) if public_map is None else replace(public_map, index=None).to_message()
        about = {"columns": asdict(columns), "measure": measure.to_meta()}
        self.link.at(number, -1)
        self.link.send(MessageKind.LEVEL, pack(request | about | {"map": about_map}, weights))
        if isinstance(choice, Sample):
            if choice.index is None:
                raise ValueError("sample without indices; use Full()")
            self.link.send(MessageKind.SAMPLE, pack({}, [choice.index.numpy().astype(np.int32)]))
        points = channels * (coarse.count if sample.index is None else sample.index.numel())
        wanted = (points, rows, columns.count(self.grid))
        meta, arrays = unpack(self.link.receive(MessageKind.OPERAND).payload)
        header = OperandHeader.from_meta(meta)
        if (header.points, header.rows, header.columns) != wanted:
            raise LinkError(f"operand of points, rows and columns {header}, {wanted} were asked for")
        of_sample, of_level = (_unpack_mean(meta, name) for name in ("sample_mean_square", "level_mean_square"))
        gram = _unpack_gram(arrays, header) if columns.kind == "steepest_descent" else None
        self._side.accept_operand(header, public_map)
        return PrivateOperand(
            grid=coarse,
            sample=sample,
            columns=columns,
            header=header,
            sample_mean_square=of_sample,
            level_mean_square=of_level,
            gram=gram,
            side=self._side,
            link=self.link,
            kept=self._open_ledger(columns, coarse, points, of_sample, of_level),
            full=self.grid,
            public_map=public_map,
            channels=channels,
        )

    def _open_ledger(
        self, columns: Columns, coarse: Grid, points: int, of_sample: float, of_level: float
    ) -> KeptLedger | None:
        if not self._with_ledger:
            return None
        if columns.kind == "steepest_descent":  # its equations are on all points of the level
            points, of_sample = coarse.count, of_level
        if columns.kind == "bins":  # its equations are on J at variance 1
            of_sample = 1.0
        self.ledgers.append(KeptLedger(Ledger(points, of_sample * points, SKETCH), points, self._most))
        return self.ledgers[-1]

    def ledger_rows(self) -> list[dict[str, Any]]:
        """What the opened values say about J, one entry an operand, as JSON values."""
        return [
            {"operand": number, "points": kept.points} | asdict(kept.last)
            for number, kept in enumerate(self.ledgers)
            if kept.last is not None
        ]

    def finish(self, shared: LinearTransform | Composite | None = None) -> None:
        """End the session; `shared` is the final transform, where the configuration shares it with party_2.

        A deformation goes as its coefficients (party_2 knows the fixed grid) and its control spacing.
        """
        meta: dict[str, Any] = {"transform": None}
        arrays: list[Any] = []
        parts = [shared] if isinstance(shared, LinearTransform) else [] if shared is None else list(shared.parts)
        for part in parts:
            if isinstance(part, LinearTransform):
                matrix, offset = (entry.detach().tolist() for entry in part.affine_map())
                meta["transform"] = {"matrix": matrix, "offset_mm": offset} | (meta["transform"] or {})
            elif isinstance(part, BSpline | VelocityField):
                kind = "bspline" if isinstance(part, BSpline) else "velocity"
                meta["transform"] = {"deformation": kind, "control_spacing_mm": part.lattice.control_spacing}
                arrays.append(part.coefficients.detach().double().numpy())
        self.link.send(MessageKind.FINISH, pack(meta, arrays))


def _level_meta(level: Level) -> dict[str, float]:
    return {"shrink": level.shrink, "smoothing_mm": level.smoothing_mm}


def _choice_meta(choice: Choice) -> dict[str, Any]:
    if isinstance(choice, Uniform):
        return {"kind": "uniform", "fraction": choice.fraction, "seed": choice.seed}
    if isinstance(choice, Permuted):
        return {"kind": "permuted", "seed": choice.seed}
    return {"kind": "full" if isinstance(choice, Full) else "indices"}


def _unpack_mean(meta: dict[str, Any], name: str) -> float:
    value = meta.get(name)
    if not isinstance(value, float) or not 0 <= value < math.inf:
        raise LinkError(f"operand: {name} {str(value)[:40]}, a finite number >= 0 is due")
    return value


def _unpack_gram(arrays: list[Any], header: OperandHeader) -> Tensor:
    shape = (header.columns, header.columns)
    if len(arrays) != 1 or arrays[0].shape != shape or arrays[0].dtype != np.float64:
        raise LinkError(f"operand: the sums of its columns' products are due, {shape} float64; refused")
    if not bool(np.isfinite(arrays[0]).all()):
        raise LinkError("operand: sums of its columns' products that are not finite; refused")
    return torch.from_numpy(arrays[0].copy())


def _unpack_mask(bits: Any, grid: Grid) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, count=grid.count).astype(bool)).reshape(grid.shape)
