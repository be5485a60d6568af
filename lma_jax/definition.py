"""A network split into its definition and its arrays."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

Tree = Any


@dataclass(frozen=True)
class Definition:
    """The structure of a model without its weights."""

    graphdef: nnx.GraphDef
    rng_state: Tree

    def bind(self, params: Tree, batch_stats: Tree) -> nnx.Module:
        """The model with these weights, in training mode."""
        return nnx.merge(self.graphdef, params, batch_stats, self.rng_state)


def split(model: nnx.Module) -> tuple[Definition, Tree, Tree]:
    """A model's structure, its parameters and its batch statistics; the inverse of `Definition.bind`."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, rng_state = map(nnx.to_pure_dict, states)
    return Definition(graphdef, rng_state), params, batch_stats
