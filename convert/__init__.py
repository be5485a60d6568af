"""Weights and momentum from lma_jax to lma_torch and back, and the proof that the two compute the same."""

from convert.momentum import get_momentum, momentum_to_jax, momentum_to_torch, set_momentum
from convert.weights import to_jax, to_torch

__all__ = ["get_momentum", "momentum_to_jax", "momentum_to_torch", "set_momentum", "to_jax", "to_torch"]
