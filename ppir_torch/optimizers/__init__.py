"""Optimisers: generators of iterations over a linearised loss."""

from .adam import Adam
from .gauss_newton import GaussNewton
from .stopping import Iteration, Stopping

__all__ = ["Adam", "GaussNewton", "Iteration", "Stopping"]
