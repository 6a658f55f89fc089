"""party_1's view of the fixed image: a `FixedSource` whose pixels stay with party_2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..errors import ConfigError, ImageError, LinkError
from ..grids import Grid
from ..images import Level, level_grid
from ..joint.operands import PrivateOperand
from ..joint.protocol import MovingSide, OperandHeader
from ..link import Kind, Link, pack, unpack
from ..registration import select_points
from ..sampling import Full, Sample, Uniform
from ..transforms import LinearTransform

__all__ = ["PrivateFixed", "greet"]


def greet(link: Link, protocol: str) -> None:
    """Both parties: say who one is and refuse another version or protocol.

    Raises:
        ConfigError: the parties do not run the same version and protocol.
    """
    mine = {"version": __version__, "protocol": protocol}
    link.send(Kind.HELLO, pack(mine))
    theirs, _ = unpack(link.receive(Kind.HELLO).payload)
    if theirs != mine:
        raise ConfigError(f"{link.peer} runs {str(theirs)[:200]}, this party {mine}; both must be the same")


class PrivateFixed:
    """The fixed image as party_1 sees it: its public geometry, and operands whose products go through a protocol.

    Args:
        link: to party_2, which runs `serve_fixed`.
        side: party_1's end of the protocol.
        protocol: its name; party_2 must run the same.

    Attributes:
        grid: geometry of the fixed image (public).
        mask: its foreground, where party_2's configuration discloses it, else None.
    """

    def __init__(self, link: Link, side: MovingSide, protocol: str) -> None:
        self.link, self._side = link, side
        greet(link, protocol)
        meta, arrays = unpack(link.receive(Kind.GEOMETRY).payload)
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

    def operand(
        self, level: Level, choice: Full | Uniform | Sample | None = None, number: int = 0, rows: int = 16
    ) -> PrivateOperand:
        """Have party_2 prepare the operand of one level.

        Args:
            level: shrink factor and smoothing of the fixed image.
            choice: all points, a uniform sample from a public seed, or explicit indices (disclosed to party_2).
            number: of the level.
            rows: most rows of one product; more are sent in several products.
        """
        choice = choice or Full()
        self.link.at(number, -1)
        self.link.send(Kind.LEVEL, pack({"level": _level_meta(level), "rows": rows, "choice": _choice_meta(choice)}))
        if isinstance(choice, Sample):
            if choice.index is None:
                raise ValueError("sample without indices; use Full()")
            self.link.send(Kind.SAMPLE, pack({}, [choice.index.numpy().astype(np.int32)]))
        coarse, _ = level_grid(self.grid, level)
        _, sample = select_points(self.grid, self.mask, level, choice, number)
        points = coarse.count if sample.index is None else sample.index.numel()
        meta, _ = unpack(self.link.receive(Kind.OPERAND).payload)
        header = OperandHeader.from_meta(meta)
        if header.points != points or header.rows != rows:
            raise LinkError(f"operand of {header.points} points and {header.rows} rows, {points} and {rows} were asked")
        mean_square = meta.get("mean_square")
        if not isinstance(mean_square, float) or not 0 <= mean_square < math.inf:
            raise LinkError(f"operand: mean square {str(mean_square)[:40]}, a finite number >= 0 is due")
        if sample.weights is None:
            mean_square = header.energy * header.scale**2 / header.points
        self._side.accept_operand(header)
        return PrivateOperand(coarse, sample, header, mean_square, self._side, self.link)

    def finish(self, shared: LinearTransform | None = None) -> None:
        """End the session; `shared` is the final transform, where the configuration shares it with party_2."""
        meta: dict[str, Any] = {"transform": None}
        if shared is not None:
            matrix, offset = (part.detach().tolist() for part in shared.affine_map())
            meta["transform"] = {"matrix": matrix, "offset_mm": offset}
        self.link.send(Kind.FINISH, pack(meta))


def _level_meta(level: Level) -> dict[str, float]:
    return {"shrink": level.shrink, "smoothing_mm": level.smoothing_mm}


def _choice_meta(choice: Full | Uniform | Sample) -> dict[str, Any]:
    if isinstance(choice, Uniform):
        return {"kind": "uniform", "fraction": choice.fraction, "seed": choice.seed}
    return {"kind": "full" if isinstance(choice, Full) else "indices"}


def _unpack_mask(bits: Any, grid: Grid) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, count=grid.count).astype(bool)).reshape(grid.shape)
