"""party_2: holds the fixed image, prepares operands, answers products, and never sees the moving image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import LARGEST_SEED
from ..errors import ConfigError, LinkError
from ..images import Image, Level, level_grid
from ..joint.operands import quantise_fixed, take
from ..joint.protocol import FixedSide, OperandHeader
from ..link import Kind, Link, Message, pack, unpack
from ..registration import select_points
from ..sampling import Full, Sample, Uniform
from .moving import greet

__all__ = ["FixedParty"]

MAX_ROWS = 1024
# Every operand discloses mean, scale and energy; over few points they would say much about each.
MAX_OPERANDS = 256
MIN_POINTS = 32


@dataclass
class FixedParty:
    """party_2's state: its image and what it agreed to disclose.

    Args:
        image: the fixed image J, one channel.
        mask: foreground, or None; disclosed to party_1 when given.
        disclose_centre_of_mass: whether GEOMETRY says where J's mass is.
    """

    image: Image
    mask: Tensor | None = None
    disclose_centre_of_mass: bool = False

    def serve(self, link: Link, side: FixedSide, protocol: str) -> dict[str, Any] | None:
        """Answer party_1 until it finishes; returns the final transform where party_1 shares it, else None.

        Raises:
            LinkError: a message that is not allowed here. PeerLost: party_1 is gone.
        """
        greet(link, protocol)
        link.send(Kind.GEOMETRY, self._geometry())
        operands = 0
        while True:
            message = link.receive(Kind.LEVEL, Kind.PRODUCT, Kind.REPLY_CIPHERTEXTS, Kind.FINISH)
            link.at(message.level, message.iteration)
            if message.kind is Kind.FINISH:
                shared: dict[str, Any] | None = unpack(message.payload)[0].get("transform")
                return shared
            if message.kind is Kind.LEVEL:
                self._prepare(link, side, message, operands)
                operands += 1
            elif operands == 0:
                raise LinkError(f"{message.kind.name} before the first level; refused")
            else:
                side.answer(message)

    def _geometry(self) -> list[Any]:
        centre = self.image.centre_of_mass().tolist() if self.disclose_centre_of_mass else None
        meta = {"grid": self.image.grid.to_meta(), "centre_of_mass": centre, "mask": self.mask is not None}
        return pack(meta, [] if self.mask is None else [np.packbits(self.mask.flatten().numpy())])

    def _prepare(self, link: Link, side: FixedSide, request: Message, number: int) -> None:
        meta, _ = unpack(request.payload)
        level, rows, public = _read_request(meta)
        choice = public or _read_indices(unpack(link.receive(Kind.SAMPLE).payload)[1])
        candidates, sample = select_points(self.image.grid, self.mask, level, choice, request.level)
        points = level_grid(self.image.grid, level)[0].count if sample.index is None else sample.index.numel()
        if number >= MAX_OPERANDS or points < MIN_POINTS:
            raise LinkError(f"operand {number}: at most {MAX_OPERANDS} a session, of at least {MIN_POINTS} points each")
        coarse = self.image.at_level(level)
        levels, scale, offset = quantise_fixed(take(coarse.tensor[0].flatten(), candidates))
        table = torch.zeros(coarse.grid.count, dtype=torch.int64)
        table[slice(None) if candidates is None else candidates] = levels
        chosen = take(table, sample.index)
        header = OperandHeader(
            number=number,
            points=chosen.numel(),
            rows=rows,
            scale=scale,
            offset=offset,
            max_abs=int(chosen.abs().max()),
            energy=int(chosen.square().sum()),
        )
        mean_square = float(levels.square().sum()) * scale**2 / levels.numel()
        link.send(Kind.OPERAND, pack({**header.to_meta(), "mean_square": mean_square}))
        side.send_operand(header, chosen)


def _read_request(meta: dict[str, Any]) -> tuple[Level, int, Full | Uniform | None]:
    try:
        level = Level(int(meta["level"]["shrink"]), float(meta["level"]["smoothing_mm"]))
        rows, kind = int(meta["rows"]), meta["choice"]["kind"]
        if not (1 <= level.shrink <= 1024 and 0 <= level.smoothing_mm <= 1000 and 1 <= rows <= MAX_ROWS):
            raise ValueError(f"{level}, {rows} rows")
        if kind == "full":
            return level, rows, Full()
        if kind == "uniform":
            fraction, seed = float(meta["choice"]["fraction"]), int(meta["choice"]["seed"])
            if not 0 <= seed <= LARGEST_SEED:
                raise ValueError(f"seed {seed}")
            return level, rows, Uniform(fraction, seed)
        if kind == "indices":
            return level, rows, None
        raise ValueError(kind)
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise LinkError(f"level request out of range: {error!r}") from None


def _read_indices(arrays: list[Any]) -> Sample:
    if len(arrays) != 1 or arrays[0].ndim != 1 or arrays[0].size == 0 or arrays[0].dtype.kind != "i":
        raise LinkError("sample: one array of point indices is due; refused")
    index = arrays[0].astype(np.int64)
    if not bool((np.diff(index) > 0).all()):
        # The mean and energy of one point, asked for many times, would be its value.
        raise LinkError("sample: indices must increase, each point is taken once; refused")
    return Sample(torch.from_numpy(index), None)
