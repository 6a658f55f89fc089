"""Losses: what party_2's operand is, and how value, gradient and Hessian follow from the joint product."""

from .deformable import DeformableNCC, DeformableSSD, Smoothness
from .inverse_ssd import InverseSSD
from .linearisation import AnyLinearisation, Linearisation, LinearLoss, OperatorLinearisation
from .measures import (
    Correlation,
    LocalCorrelation,
    Measure,
    Mind,
    ModuleFeatures,
    MutualInformation,
    SquaredDifference,
)
from .mutual_information import MI
from .ncc import NCC
from .ssd import SSD

__all__ = [
    "MI",
    "NCC",
    "SSD",
    "AnyLinearisation",
    "Correlation",
    "DeformableNCC",
    "DeformableSSD",
    "InverseSSD",
    "LinearLoss",
    "Linearisation",
    "LocalCorrelation",
    "Measure",
    "Mind",
    "ModuleFeatures",
    "MutualInformation",
    "OperatorLinearisation",
    "Smoothness",
    "SquaredDifference",
]
