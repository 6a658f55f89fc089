"""Optimisers: generators of iterations over a linearised loss."""

from .adam import Adam
from .gauss_newton import GaussNewton
from .inverse_compositional import InverseCompositional
from .stopping import Iteration, Stopping

__all__ = ["Adam", "GaussNewton", "InverseCompositional", "Iteration", "Stopping"]
