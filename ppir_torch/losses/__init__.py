"""Losses: what party_2's operand is, and how value, gradient and Hessian follow from the joint product."""

from .inverse_ssd import InverseSSD
from .ssd import SSD, Linearisation

__all__ = ["SSD", "InverseSSD", "Linearisation"]
