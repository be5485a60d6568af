"""Networks and states filled with the arrays of a checkpoint."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding

from lma_jax.checkpoint.format import Checkpoint
from lma_jax.definition import Definition, split
from lma_jax.errors import UserError
from lma_jax.registry import create_model


def restore_model(checkpoint: Checkpoint, *, dtype: Any = None, sharding: Sharding | None = None) -> nnx.Module:
    """The network of a checkpoint with its weights (their moving average where the run kept one), in training mode.

    Args:
        checkpoint: what `load_checkpoint` returned.
        dtype: computation dtype; by default that of the input and the parameters.
        sharding: where the weights go; by default the first device.

    Raises:
        UserError: the arrays do not fit the model that the metadata name.
    """
    metadata = checkpoint.metadata
    placement = sharding or SingleDeviceSharding(jax.local_devices()[0])
    param_dtype = next(array.dtype for path, array in checkpoint.arrays.items() if path.startswith("params/"))

    def build() -> nnx.Module:
        options: dict[str, Any] = dict(num_classes=metadata["num_classes"], dtype=dtype, param_dtype=param_dtype)
        return create_model(metadata["model"], **options, rngs=nnx.Rngs(0))

    abstract, params, batch_stats = split(nnx.eval_shape(build))
    rng_state = jax.jit(lambda: split(build())[0].rng_state, out_shardings=placement)()
    evaluated = checkpoint.evaluated()
    return Definition(abstract.graphdef, rng_state).bind(
        fill(params, evaluated, sharding=placement, prefix="params/"),
        fill(batch_stats, evaluated, sharding=placement, prefix="batch_stats/"),
    )


def fill(template: Any, checkpoint: Checkpoint, *, sharding: Sharding, prefix: str = "") -> Any:
    """A tree like `template` (arrays or their shapes) with the checkpoint's arrays below `prefix`.

    Raises:
        UserError: arrays are missing, unexpected or of another shape or dtype; the first ones are named.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(template)
    wanted = {prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    found = {path: array for path, array in checkpoint.arrays.items() if path.startswith(prefix)}
    problems = [f"missing {path}" for path in wanted if path not in found]
    problems += [f"unexpected {path}" for path in found if path not in wanted]
    for path in sorted(wanted.keys() & found.keys()):
        given, needed = found[path], wanted[path]
        if (given.shape, given.dtype) != (needed.shape, needed.dtype):
            problems.append(f"{path} is {given.dtype}{given.shape}, not {needed.dtype}{needed.shape}")
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise UserError(
            f"checkpoint {checkpoint.step} is of another network, a {checkpoint.metadata['model']} with "
            f"{checkpoint.metadata['num_classes']} classes ({len(problems)} differences: {shown})"
        )
    return jax.tree_util.tree_unflatten(treedef, [_place(found[path], sharding) for path in wanted])


def _place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
