"""Optimisers: generators of iterations over a linearised loss."""

from .adam import Adam
from .base import Optimizer
from .gauss_newton import GaussNewton
from .inverse_compositional import InverseCompositional
from .lbfgs import LBFGS
from .stopping import Iteration, Stopping

__all__ = ["LBFGS", "Adam", "GaussNewton", "InverseCompositional", "Iteration", "Optimizer", "Stopping"]
