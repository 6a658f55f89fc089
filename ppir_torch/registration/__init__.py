"""The registration loop: levels, iterations, one joint product each. The same code for clear and private runs."""

from .loop import register_images
from .plan import Deformable, Plan
from .request import OperandRequest
from .result import LevelIteration, Result
from .source import ClearFixed, FixedSource
from .verdict import Finding, LevelFacts

__all__ = [
    "ClearFixed",
    "Deformable",
    "Finding",
    "FixedSource",
    "LevelFacts",
    "LevelIteration",
    "OperandRequest",
    "Plan",
    "Result",
    "register_images",
]
