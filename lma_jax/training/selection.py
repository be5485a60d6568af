"""Parameters by patterns over their names: those that are frozen, and those with a learning rate of their own.

A name is the path of attributes, such as "layer1.0.conv1.kernel" or "fc.bias". Patterns are those of fnmatch, whose *
matches dots too: "layer1.*" is the whole stage.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import jax
from flax import nnx

from lma_jax.definition import Tree
from lma_jax.errors import nearest
from lma_jax.registry import create_model

STATISTICS = ("mean", "var")


@lru_cache
def parameter_names(model: str, **options: Any) -> list[str]:
    """The names of the parameters of the network `create_model(model, **options)`, which is not computed."""
    shapes = nnx.eval_shape(lambda: create_model(model, rngs=nnx.Rngs(0), **options))
    return [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(shapes, nnx.Param))]


def require_match(pattern: str, names: Sequence[str]) -> None:
    """Raises a ValueError that names the nearest parameter or group of them if a pattern matches no name."""
    if not any(matches(name, [pattern]) for name in names):
        groups = {f"{name.rsplit('.', depth)[0]}.*" for name in names for depth in range(1, name.count(".") + 1)}
        raise ValueError(f"matches no parameter, did you mean {nearest(pattern, sorted({*names, *groups}))!r}?")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_frozen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter, or a running statistic by its name ("bn1.mean"), is frozen.

    Statistics are frozen where all parameters of their BatchNorm are.
    """
    layer, _, variable = name.rpartition(".")
    needed = (f"{layer}.scale", f"{layer}.bias") if variable in STATISTICS else (name,)
    return all(matches(each, patterns) for each in needed)


def trained(tree: Tree, patterns: Sequence[str]) -> Tree:
    """A tree of parameters or statistics with None, which is no leaf to JAX, in place of the frozen ones."""
    return map_named(lambda name, leaf: None if is_frozen(name, patterns) else leaf, tree)


def joined(trained: Tree, whole: Tree) -> Tree:
    """`whole`, with the leaves of `trained` in place of its own except where that holds None."""
    return jax.tree.map(lambda new, old: old if new is None else new, trained, whole, is_leaf=lambda leaf: leaf is None)


def map_named(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """The tree of `function(name, leaf)`."""

    def call(path: Any, leaf: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="."), leaf)

    return jax.tree_util.tree_map_with_path(call, tree)
