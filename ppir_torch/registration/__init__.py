"""The registration loop: levels, iterations, one joint product each. The same code for clear and private runs."""

from .loop import ClearFixed, Deformable, Plan, Result, register_images

__all__ = ["ClearFixed", "Deformable", "Plan", "Result", "register_images"]
