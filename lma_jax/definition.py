"""A network split into its definition and its arrays, which is what jitted functions take."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

Tree = Any


@dataclass(frozen=True)
class Definition:
    """A network without its weights and statistics.

    Attributes:
        graphdef: structure of the nnx module.
        rng_state: state of its random streams.
    """

    graphdef: nnx.GraphDef
    rng_state: Tree

    def bind(self, params: Tree, batch_stats: Tree) -> nnx.Module:
        """The network with these weights and statistics, in training mode."""
        return nnx.merge(self.graphdef, params, batch_stats, self.rng_state)


def split(model: nnx.Module) -> tuple[Definition, Tree, Tree]:
    """Splits a network into its definition, its parameters and its batch statistics; `Definition.bind` joins them.

    Returns:
        The definition, and two nested dictionaries of arrays, whose keys are the attribute names of the modules.
    """
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, rng_state = map(nnx.to_pure_dict, states)
    return Definition(graphdef, rng_state), params, batch_stats
