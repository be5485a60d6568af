"""The momentum of SGD by PyTorch's parameter names, as a file of weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from convert.momentum import momentum_to_torch
from lma_jax.checkpoint.format import Checkpoint, to_arrays
from lma_jax.checkpoint.restore import fill, restore_model
from lma_jax.definition import split
from lma_jax.errors import UserError
from lma_jax.overwriting import Kind
from lma_jax.weight_files import require_suffix, to_array, write_weights

# An export of weights has statistics as well.
MOMENTUM = Kind(holds=("num_classes", "step"), lacks=("running_var",))


def export_momentum(checkpoint: Checkpoint, output: Path, *, names: str | None = None) -> str:
    """Writes the momentum of a checkpoint; that of frozen parameters, which have none, is 0.

    Args:
        checkpoint: what `load_checkpoint` returned.
        output: .safetensors or .pth file.
        names: as in `convert.to_torch`.

    Returns:
        One line about the result.

    Raises:
        UserError: the checkpoint has no momentum, or it belongs to other weights than those that are exported.
    """
    require_suffix(output)
    described = checkpoint.metadata
    if any(path.startswith("ema/") for path in checkpoint.arrays):
        raise UserError("the moving average of the weights is what is exported, but momentum belongs to the weights")
    parts = {path: path.partition("/trace/") for path in checkpoint.arrays if path.startswith("opt_state/")}
    arrays = {name: checkpoint.arrays[path] for path, (_, _, name) in parts.items() if name}
    if not arrays:
        optimizer = described.config.get("optimizer", "unknown")
        raise UserError(f"checkpoint {checkpoint.step} holds no momentum of SGD: its config.optimizer is {optimizer}")
    jax_model = restore_model(checkpoint)
    _, params, _ = split(jax_model)
    if described.config.get("freeze"):
        arrays = {**to_arrays(jax.tree.map(jnp.zeros_like, params)), **arrays}
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    trace = fill(params, arrays, sharding=sharding, source=str(checkpoint))
    momentum = momentum_to_torch(trace, jax_model, names=names)
    metadata = {"model": described.model, "num_classes": described.num_classes, "step": checkpoint.step}
    write_weights(output, {name: to_array(buffer) for name, buffer in momentum.items()}, metadata)
    return f"momentum of step {checkpoint.step:,} written to {output}"
