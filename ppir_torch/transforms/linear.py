"""Linear transforms as nn.Modules: they map points of the fixed image to points of the moving image, in mm LPS.

    y = A(theta) (x - c) + c + t

Every parameter is in millimetres: one unit of translation moves a point by 1 mm, one unit of a rotation or matrix
parameter moves the points of the fixed grid by about 1 mm (it is divided by the grid's `radius`), so that one learning
rate and one damping fit all of them.

>>> grid = Grid(size=(10, 10, 10))
>>> transform = Affine(grid)
>>> torch.equal(transform(grid.points()), grid.points())
True
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..config.transforms import TRANSFORMS, TransformEntry, linear_names
from ..errors import ConfigError
from ..grids import Grid

__all__ = [
    "Affine",
    "LinearTransform",
    "Rigid",
    "Similarity",
    "Translation",
    "affine_from_map",
    "linear_transform",
]


class LinearTransform(nn.Module):
    """Base of the linear transforms; `matrix()` says which A the parameters stand for.

    Args:
        grid: the fixed image's grid; its centre is c and its radius scales the parameters.
        dtype: of the parameters.

    Attributes:
        entry: what is known of it: its name in configurations, files and messages.
    """

    entry: ClassVar[TransformEntry]
    centre: Tensor

    def __init__(self, grid: Grid, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.dimension = grid.dimension
        self.radius = grid.radius
        self.register_buffer("centre", grid.centre.to(dtype))
        self.translation = nn.Parameter(torch.zeros(grid.dimension, dtype=dtype))

    @property
    def name(self) -> str:
        """As in configurations."""
        return self.entry.name

    @property
    def any_affine_map(self) -> bool:
        """Whether the parameters are those of every map A x + b."""
        return self.entry.any_affine

    @abstractmethod
    def matrix(self) -> Tensor:
        """A, (D, D)."""

    def affine_map(self) -> tuple[Tensor, Tensor]:
        """(A (D, D), b (D,)) with y = A x + b; differentiable in the parameters."""
        matrix = self.matrix()
        return matrix, self.centre + self.translation - matrix @ self.centre

    def forward(self, points: Tensor) -> Tensor:
        """Map points (..., D) in mm to points (..., D) in mm, in the points' dtype."""
        matrix, offset = self.affine_map()
        return points @ matrix.T.to(points) + offset.to(points)

    def inverse(self) -> Affine:
        """The transform that maps moving points back to fixed points."""
        matrix, offset = (part.detach() for part in self.affine_map())
        back = torch.linalg.inv(matrix)
        return self._affine(back, -(back @ offset))

    def compose(self, first: LinearTransform) -> Affine:
        """The transform x -> self(first(x))."""
        matrix, offset = (part.detach() for part in self.affine_map())
        inner, inner_offset = (part.detach() for part in first.affine_map())
        return self._affine(matrix @ inner, matrix @ inner_offset + offset)

    @abstractmethod
    def set_affine_map(self, matrix: Tensor, offset: Tensor) -> None:
        """Take the parameters of y = matrix x + offset, matrix (D, D) of this family, offset (D,) mm."""

    def nearest(self, matrix: Tensor) -> Tensor:
        """The matrix (D, D) of this family that differs least, in the sum of squares, from one of positive determinant.

        As it stands here that one itself, for families that hold every matrix, or whose `set_affine_map` takes what it
        can of it.
        """
        return matrix

    @torch.no_grad()
    def step_back(self, step: Tensor) -> None:
        """Replace self by self o W^-1, W this family's transform with the parameters `step` (P,), mm.

        The update of inverse-compositional Gauss-Newton (Baker and Matthews, IJCV 2004, equation 35).
        """
        inner = copy.deepcopy(self)
        parts = torch.split(step, [p.numel() for p in inner.parameters()])
        for parameter, part in zip(inner.parameters(), parts, strict=True):
            parameter.copy_(part.reshape(parameter.shape))
        self.set_affine_map(*self.compose(inner.inverse()).affine_map())

    def set_translation(self, matrix: Tensor, offset: Tensor) -> None:
        """Take the translation of y = matrix x + offset: for `set_affine_map`, without gradients."""
        self.translation.copy_(offset.to(self.centre) + matrix.to(self.centre) @ self.centre - self.centre)

    def _affine(self, matrix: Tensor, offset: Tensor) -> Affine:
        result = Affine.__new__(Affine)
        nn.Module.__init__(result)
        result.dimension, result.radius = self.dimension, self.radius
        result.register_buffer("centre", self.centre.clone())
        result.translation = nn.Parameter(torch.zeros_like(self.translation))
        result.shear = nn.Parameter(self.translation.new_zeros(self.dimension, self.dimension))
        result.set_affine_map(matrix, offset)
        return result

    def extra_repr(self) -> str:
        """Shown by print: the matrix and the offset in mm."""
        matrix, offset = (part.detach() for part in self.affine_map())
        rows = [[round(v, 5) for v in row] for row in matrix.tolist()]
        return f"matrix={rows}, offset_mm={[round(v, 4) for v in offset.tolist()]}"


class Translation(LinearTransform):
    """y = x + t; D parameters."""

    entry = TRANSFORMS.ours("translation")

    def matrix(self) -> Tensor:
        """Identity."""
        return torch.eye(self.dimension, dtype=self.translation.dtype, device=self.translation.device)

    def nearest(self, matrix: Tensor) -> Tensor:
        """See `LinearTransform`: the identity."""
        return torch.eye(self.dimension, dtype=matrix.dtype, device=matrix.device)

    @torch.no_grad()
    def set_affine_map(self, matrix: Tensor, offset: Tensor) -> None:
        """Take the translation; the matrix is the identity."""
        self.set_translation(matrix, offset)


class Rigid(LinearTransform):
    """Rotation (matrix exponential of a skew matrix) about the grid's centre, and translation; 3 or 6 parameters."""

    entry = TRANSFORMS.ours("rigid")

    def __init__(self, grid: Grid, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(grid, dtype)
        self.rotation = nn.Parameter(torch.zeros(1 if grid.dimension == 2 else 3, dtype=dtype))

    def matrix(self) -> Tensor:
        """exp([rotation / radius]x), rotations counter-clockwise about x, y, z in radians after the division."""
        return _rotation(self.rotation / self.radius)

    def nearest(self, matrix: Tensor) -> Tensor:
        """See `LinearTransform`: the rotation of its polar decomposition (Higham, SIAM J. Sci. Stat. Comput. 1986)."""
        left, _, right = torch.linalg.svd(matrix)
        rotation: Tensor = left @ right
        return rotation

    @torch.no_grad()
    def set_affine_map(self, matrix: Tensor, offset: Tensor) -> None:
        """Take rotation and translation; the matrix is a rotation."""
        self.rotation.copy_(_rotation_vector(matrix) * self.radius)
        self.set_translation(matrix, offset)


class Similarity(Rigid):
    """Rigid times one scale exp(log_scale / radius); 4 or 7 parameters."""

    entry = TRANSFORMS.ours("similarity")

    def __init__(self, grid: Grid, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(grid, dtype)
        self.log_scale = nn.Parameter(torch.zeros(1, dtype=dtype))

    def matrix(self) -> Tensor:
        """Scale times rotation."""
        return torch.exp(self.log_scale / self.radius) * super().matrix()

    def nearest(self, matrix: Tensor) -> Tensor:
        """See `LinearTransform`: that rotation times the mean of the singular values."""
        scale: Tensor = torch.linalg.svdvals(matrix).mean()
        return scale * super().nearest(matrix)

    @torch.no_grad()
    def set_affine_map(self, matrix: Tensor, offset: Tensor) -> None:
        """Take scale, rotation and translation; the matrix is a positive multiple of a rotation."""
        scale = torch.linalg.det(matrix) ** (1 / self.dimension)
        self.log_scale.copy_(scale.log() * self.radius)
        self.rotation.copy_(_rotation_vector(matrix / scale) * self.radius)
        self.set_translation(matrix, offset)


class Affine(LinearTransform):
    """A = I + shear / radius; 6 or 12 parameters."""

    entry = TRANSFORMS.ours("affine")

    def __init__(self, grid: Grid, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(grid, dtype)
        self.shear = nn.Parameter(torch.zeros(grid.dimension, grid.dimension, dtype=dtype))

    def matrix(self) -> Tensor:
        """Identity plus the scaled parameters."""
        identity = torch.eye(self.dimension, dtype=self.shear.dtype, device=self.shear.device)
        return identity + self.shear / self.radius

    @torch.no_grad()
    def set_affine_map(self, matrix: Tensor, offset: Tensor) -> None:
        """Take the parameters of y = matrix x + offset, matrix (D, D), offset (D,) mm."""
        identity = torch.eye(self.dimension, dtype=self.shear.dtype, device=self.shear.device)
        self.shear.copy_((matrix.to(self.shear) - identity) * self.radius)
        self.set_translation(matrix, offset)


def linear_transform(name: str) -> type[LinearTransform]:
    """The class of a linear transform, ours or another package's.

    Raises:
        ConfigError: an unknown name, or one whose package cannot be imported.

    >>> linear_transform("rigid").__name__
    'Rigid'
    """
    if name not in linear_names():
        raise ConfigError(f"transform: {TRANSFORMS.refusal(name, linear_names())}")
    found: type[LinearTransform] = TRANSFORMS[name].load()
    return found


def affine_from_map(grid: Grid, matrix: Tensor, offset: Tensor) -> Affine:
    """The Affine with y = matrix x + offset (mm LPS)."""
    if matrix.shape != (grid.dimension,) * 2 or offset.shape != (grid.dimension,):
        raise ConfigError(f"affine: {tuple(matrix.shape)} and {tuple(offset.shape)} on a {grid.dimension}-D grid")
    transform = Affine(grid)
    transform.set_affine_map(matrix, offset)
    return transform


def _rotation(vector: Tensor) -> Tensor:
    zero = torch.zeros_like(vector[0])
    if vector.numel() == 1:
        rows = [[zero, -vector[0]], [vector[0], zero]]
    else:
        x, y, z = vector
        rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    skew = torch.stack([torch.stack(row) for row in rows])
    return cast(Any, torch.linalg.matrix_exp)(skew)  # type: ignore[no-any-return]


def _rotation_vector(matrix: Tensor) -> Tensor:
    """Inverse of `_rotation`, of angles up to pi, by the quaternion: from the skew part alone a half turn is lost."""
    if matrix.shape[0] == 2:
        return torch.atan2(matrix[1, 0], matrix[0, 0])[None]
    skew = torch.stack(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )  # 2 sin(angle) axis
    # 4 q q^T of the unit quaternion q = (cos(angle / 2), sin(angle / 2) axis); its longest row has no cancellation
    # (Bar-Itzhack, J. Guidance 2000).
    outer = matrix.new_empty(4, 4)
    outer[0, 0], outer[0, 1:], outer[1:, 0] = 1 + matrix.trace(), skew, skew
    outer[1:, 1:] = matrix + matrix.T + (1 - matrix.trace()) * torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    row = outer[int(outer.diagonal().argmax())]
    quaternion = row / torch.linalg.vector_norm(row)
    quaternion = torch.where(quaternion[0] < 0, -quaternion, quaternion)
    half_sine = torch.linalg.vector_norm(quaternion[1:])
    angle = 2 * torch.atan2(half_sine, quaternion[0])
    return 2 * quaternion[1:] if float(half_sine) < 1e-12 else quaternion[1:] * (angle / half_sine)
