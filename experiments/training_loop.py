"""A private loss is an ordinary torch loss: the same training loop in clear and against an image one never sees.

    python experiments/training_loop.py [--backend bfv] [--steps 60]

The transform is the user's own nn.Module (an affine map plus a smooth displacement of 3 x 3 radial bumps), which
ppir_torch knows nothing about; the optimiser is torch.optim.Adam.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ppir_torch import (
    SSD,
    ClearFixed,
    Grid,
    Image,
    Level,
    OperandRequest,
    PpirError,
    load_image,
    open_private,
    save_image,
)


class Bumps(nn.Module):
    """x + sum_k w_k exp(-|x - c_k|^2 / 2 s^2): points (N, D) mm to points (N, D) mm, 18 parameters in 2-D."""

    centres: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        steps = torch.linspace(-0.5, 0.5, 3) * grid.radius * 1.5
        self.register_buffer("centres", torch.cartesian_prod(steps, steps) + grid.centre.float())
        self.width = grid.radius / 2
        self.weights = nn.Parameter(torch.zeros(len(self.centres), 2))

    def forward(self, points: Tensor) -> Tensor:
        square = (points[:, None] - self.centres).square().sum(-1)
        return points + torch.exp(-square / (2 * self.width**2)) @ self.weights


def fit(loss: nn.Module, transform: nn.Module, moving: Image, steps: int) -> list[float]:
    """The loop: nothing in it knows whether the loss is private."""
    optimizer = torch.optim.Adam(transform.parameters(), lr=0.2)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(transform, moving)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="bfv", choices=("bfv", "ckks", "beaver", "spdz"))
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        moving_file, fixed_file = Path(folder) / "moving.mha", Path(folder) / "fixed.mha"
        save_image(textured(shift=0.0), moving_file)
        save_image(textured(shift=2.5), fixed_file)
        moving, level = load_image(moving_file), Level(shrink=1, smoothing_mm=1.0)

        fixed = ClearFixed(load_image(fixed_file))
        clear = Bumps(fixed.grid)
        clear_values = fit(SSD(fixed.operand(OperandRequest(level))), clear, moving.at_level(level), arguments.steps)

        # 19 values a step are far more than the default cap of so small an image allows: party_2 must agree to it.
        releases, cap = Path(folder) / "releases.sqlite", 20 * arguments.steps + 100
        # party_2 is another process
        with open_private(fixed_file, arguments.backend, releases=releases, max_values=cap) as unseen:
            private = Bumps(unseen.grid)
            loss = SSD(unseen.operand(OperandRequest(level, rows=19)))
            private_values = fit(loss, private, moving.at_level(level), arguments.steps)
            sent = unseen.channel.bytes_sent
            [known] = unseen.ledger_rows()

    difference = float((clear.weights - private.weights).detach().abs().max())
    print(f"clear:   loss {clear_values[0]:.3f} -> {clear_values[-1]:.3f}")
    print(f"private: loss {private_values[0]:.3f} -> {private_values[-1]:.3f}, {sent / 1e6:.2f} MB sent")
    share = f"{known['beyond']:.0%} of what party_1's own image leaves of the fixed one"
    print(f"ledger:  {known['opened']} values opened, rank {known['rank']} of {known['points']}; they say {share}")
    print(f"largest difference of a parameter: {difference:.2e} mm")
    return 0


def textured(shift: float) -> Image:
    """A smooth 96 x 80 texture, locally displaced by up to `shift` mm."""
    grid = Grid((96, 80))
    x = grid.points(dtype=torch.float64) - grid.centre
    x = x + shift * torch.exp(-(x.square().sum(1, keepdim=True)) / 600)
    waves = torch.sin(x[:, 0] / 5) + torch.cos(x[:, 1] / 6) + torch.sin((x[:, 0] + x[:, 1]) / 8)
    window = torch.exp(-(x.square().sum(1)) / 900)
    return Image((50 * waves * window + 100 * window).float().reshape(1, *grid.shape), grid)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PpirError as error:
        print(f"training_loop: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
