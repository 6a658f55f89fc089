"""Losses: what party_2's operand is, and how value, gradient and Hessian follow from the joint product."""

from .correlation_ratio import CR, CorrelationRatio, DeformableCR
from .deformable import DeformableSSD
from .inverse_ssd import InverseSSD
from .linearisation import AnyLinearisation, LatticeLoss, Linearisation, LinearLoss, OperatorLinearisation
from .local_ncc import LocalCorrelation
from .measures import Measure
from .mind import Mind
from .module import ModuleFeatures
from .mutual_information import MI, MutualInformation
from .ncc import NCC, Correlation, DeformableNCC, DeformableSquaredNCC, SquaredCorrelation, SquaredNCC
from .smooth import Smoothness
from .ssd import SSD, FeatureDifference, SquaredDifference

__all__ = [
    "CR",
    "MI",
    "NCC",
    "SSD",
    "AnyLinearisation",
    "Correlation",
    "CorrelationRatio",
    "DeformableCR",
    "DeformableNCC",
    "DeformableSSD",
    "DeformableSquaredNCC",
    "FeatureDifference",
    "InverseSSD",
    "LatticeLoss",
    "LinearLoss",
    "Linearisation",
    "LocalCorrelation",
    "Measure",
    "Mind",
    "ModuleFeatures",
    "MutualInformation",
    "OperatorLinearisation",
    "Smoothness",
    "SquaredCorrelation",
    "SquaredDifference",
    "SquaredNCC",
]
