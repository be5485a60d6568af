"""Networks and states filled with the arrays of a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding

from lma_jax.checkpoint.format import Arrays, Checkpoint
from lma_jax.definition import Definition, split
from lma_jax.errors import UserError
from lma_jax.registry import create_model, problem_with


def restore_model(checkpoint: Checkpoint, *, dtype: Any = None, sharding: Sharding | None = None) -> nnx.Module:
    """The network of a checkpoint with its weights (their moving average where the run kept one), in training mode.

    Args:
        checkpoint: what `load_checkpoint` returned.
        dtype: computation dtype; by default that of the input and the parameters.
        sharding: sharding of the weights; by default they lie on the first device.

    Raises:
        UserError: the metadata name no known model, or the arrays do not fit it.
    """
    metadata = checkpoint.metadata
    sharding = sharding or SingleDeviceSharding(jax.local_devices()[0])
    if problem := problem_with(metadata.model, registered_by=metadata.registered_by):
        raise UserError(f"{checkpoint} cannot be built: {problem}")
    dtypes = (array.dtype for path, array in checkpoint.arrays.items() if path.startswith("params/"))
    param_dtype = next(dtypes, None)
    if param_dtype is None or not jnp.issubdtype(param_dtype, jnp.floating):
        raise UserError(f"{checkpoint} holds no weights")

    def build() -> nnx.Module:
        options: dict[str, Any] = dict(num_classes=metadata.num_classes, dtype=dtype, param_dtype=param_dtype)
        return create_model(metadata.model, **options, **metadata.model_options, rngs=nnx.Rngs(0))

    try:
        abstract, params, batch_stats = split(nnx.eval_shape(build))
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{checkpoint} cannot be built with {metadata.model_options}: {error}") from error
    rng_state = jax.jit(lambda: split(build())[0].rng_state, out_shardings=sharding)()
    arrays, source = checkpoint.evaluated().arrays, str(checkpoint)
    return Definition(abstract.graphdef, rng_state).bind(
        fill(params, arrays, prefix="params/", sharding=sharding, source=source),
        fill(batch_stats, arrays, prefix="batch_stats/", sharding=sharding, source=source),
    )


def fill(template: Any, arrays: Arrays, *, prefix: str = "", sharding: Sharding, source: str) -> Any:
    """A tree with the structure of `template`, filled with the arrays whose paths start with `prefix`.

    Args:
        template: tree of arrays or of their shapes.
        arrays: arrays by path.
        prefix: what precedes the paths of `template` in those of `arrays`.
        sharding: sharding of the result.
        source: what the arrays are, for the error.

    Raises:
        UserError: arrays are missing, unexpected or of another shape or dtype; the first ones are named.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(template)
    wanted = {prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    found = {path: array for path, array in arrays.items() if path.startswith(prefix)}
    problems = [f"missing {path}" for path in wanted if path not in found]
    problems += [f"unexpected {path}" for path in found if path not in wanted]
    for path in sorted(wanted.keys() & found.keys()):
        given, needed = found[path], wanted[path]
        if (given.shape, given.dtype) != (needed.shape, needed.dtype):
            problems.append(f"{path} is {given.dtype}{given.shape}, not {needed.dtype}{needed.shape}")
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise UserError(f"{source} is of another network ({len(problems)} differences: {shown})")
    return jax.tree_util.tree_unflatten(treedef, [_put(found[path], sharding) for path in wanted])


def _put(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
