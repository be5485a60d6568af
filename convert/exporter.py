"""A checkpoint as a file for other tools, with the proof that it computes the same."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

import lma_torch
from convert.comparison import compare, report, summary
from convert.files import require_suffix, write_file, write_weights
from convert.momentum import momentum_to_torch
from convert.programs import onnx_program, stablehlo_program, torch_program
from convert.weights import to_torch
from lma_jax.errors import UserError
from lma_jax.training.checkpoint import Checkpoint, fill, restore_model
from lma_jax.training.state import split

TORCH_SUFFIXES = (".safetensors", ".pth", ".pt2", ".onnx")
STABLEHLO_SUFFIXES = (".stablehlo",)


def export(checkpoint: Checkpoint, output: Path, *, source: str) -> str:
    """Writes the network of a checkpoint in the format that the suffix of `output` names, and says what was done.

    The file is written only if every layer computes the same in both frameworks; its metadata hold the model, the
    classes, the preprocessing, the metrics, the source and the proof.

    Args:
        checkpoint: what `load_checkpoint` returned.
        output: the file; its suffix is one of TORCH_SUFFIXES or STABLEHLO_SUFFIXES.
        source: the workdir of the checkpoint, for the metadata.

    Raises:
        UserError: another suffix, a package of the format is missing, or the file cannot be written.
        ArithmeticError: the frameworks do not compute the same, which would be a bug.
    """
    require_suffix(output, TORCH_SUFFIXES + STABLEHLO_SUFFIXES)
    described = checkpoint.metadata
    jax_model = restore_model(checkpoint)
    torch_model = lma_torch.create_model(described["model"], num_classes=described["num_classes"])
    torch_model.load_state_dict(to_torch(jax_model), assign=True)
    size = described["preprocessing"]["image_size"]
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))
    differences = compare(jax_model, torch_model, images)
    if not all(row.passed for row in differences):
        raise ArithmeticError("\n".join(report(differences, by_layer=True)))
    metadata = {name: described[name] for name in ("model", "num_classes", "preprocessing", "metrics")}
    metadata |= {"checkpoint": source, "step": checkpoint.step, "verified": summary(differences)}
    match output.suffix:
        case ".pt2":
            write_file(output, torch_program(torch_model, images, metadata))
        case ".onnx":
            write_file(output, onnx_program(torch_model, images, metadata))
        case ".stablehlo":
            write_file(output, stablehlo_program(jax_model, torch_model, images, metadata))
        case _:
            write_weights(output, torch_model.state_dict(), metadata)
    layers = metadata["verified"]["float64"]["layers"]
    return f"{metadata['model']}, step {checkpoint.step:,}, written to {output}; {layers} layers compute the same"


def export_momentum(checkpoint: Checkpoint, output: Path) -> str:
    """Writes SGD's momentum by PyTorch's parameter names, as a file of weights, and says what was done.

    Raises:
        UserError: the checkpoint has none, or that of other weights than are exported.
    """
    require_suffix(output)
    described = checkpoint.metadata
    if any(path.startswith("ema/") for path in checkpoint.arrays):
        raise UserError("the moving average of the weights is what is exported, but momentum belongs to the weights")
    parts = {path: path.partition("/trace/") for path in checkpoint.arrays if path.startswith("opt_state/")}
    arrays = {name: checkpoint.arrays[path] for path, (_, _, name) in parts.items() if name}
    if not arrays:
        raise UserError(f"checkpoint {checkpoint.step} holds no momentum of SGD")
    jax_model = restore_model(checkpoint)
    _, params, _ = split(jax_model)
    trace = fill(params, replace(checkpoint, arrays=arrays), sharding=SingleDeviceSharding(jax.local_devices()[0]))
    metadata = {"model": described["model"], "num_classes": described["num_classes"], "step": checkpoint.step}
    write_weights(output, momentum_to_torch(trace, jax_model), metadata)
    return f"momentum of step {checkpoint.step:,} written to {output}"
