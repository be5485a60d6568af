"""Weights from lma_jax to lma_torch and back, and the proof that the two compute the same."""

from convert.weights import to_jax, to_torch

__all__ = ["to_jax", "to_torch"]
