"""Losses: what party_2's operand is, and how value, gradient and Hessian follow from the joint product."""

from .deformable import DeformableSSD, Smoothness
from .inverse_ssd import InverseSSD
from .linearisation import AnyLinearisation, Linearisation, OperatorLinearisation
from .ssd import SSD

__all__ = [
    "SSD",
    "AnyLinearisation",
    "DeformableSSD",
    "InverseSSD",
    "Linearisation",
    "OperatorLinearisation",
    "Smoothness",
]
