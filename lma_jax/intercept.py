"""Observing a network layer by layer: a copy whose modules run a function around each of their calls."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from flax import nnx


def intercept(model: nnx.Module, around: Callable[..., Any]) -> Any:
    """A copy of a network in which `around(path, module, call, *args, **kwargs)` stands for the call of each module.

    `around` returns the module's output: that of `call(*args, **kwargs)`, the module's own call, or a replacement.
    The copy is meant for one trace; it cannot be intercepted again.

    Args:
        model: any network, in any mode; it is left as it is.
        around: its arguments are the dotted path of a module (such as "layer4.1.conv2"; "" is the network itself), the
            module, its own call, and the arguments of the call. A module with several paths has the first of them.

    >>> import jax.numpy as jnp, lma_jax
    >>> shapes = {}
    >>> def record(path, module, call, x):
    ...     output = call(x)
    ...     shapes[path] = output.shape
    ...     return output
    >>> block = lma_jax.BasicBlock(4, 8, stride=2, rngs=nnx.Rngs(0))
    >>> _ = intercept(block, record)(jnp.ones((1, 6, 6, 4)))
    >>> shapes["conv1"], shapes["downsample.1"], shapes[""]
    ((1, 3, 3, 8), (1, 3, 3, 8), (1, 3, 3, 8))
    """
    model = nnx.clone(model)
    for path, module in list(nnx.iter_modules(model)):
        if callable(module):
            vars(module)["_around"] = partial(around, ".".join(map(str, path)))
            module.__class__ = _intercepted(type(module))
    return model


@cache
def _intercepted(kind: Any) -> type:
    """A subclass of `kind` that calls `_around`. It is made once for each kind, since JAX keeps every class."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._around(self, partial(kind.__call__, self), *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call})
