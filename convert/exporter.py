"""A checkpoint as a file for other tools, with the proof that it computes the same."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from jax.sharding import SingleDeviceSharding

import lma_torch
from convert.comparison import compare, report, summary
from convert.files import SUFFIXES, require_suffix, write_file, write_weights
from convert.momentum import momentum_to_torch
from convert.programs import onnx_program, stablehlo_program, torch_program
from convert.weights import to_torch
from lma_jax.checkpoint.format import Checkpoint
from lma_jax.checkpoint.restore import fill, restore_model
from lma_jax.definition import split
from lma_jax.errors import UserError

TORCH_SUFFIXES = (".safetensors", ".pth", ".pt2", ".onnx")
STABLEHLO_SUFFIXES = (".stablehlo",)


def require_output(output: Path, suffixes: tuple[str, ...], *, fold: bool) -> None:
    """Raises a UserError where a path ends in none of `suffixes`, or in one of weights that are to be folded."""
    require_suffix(output, suffixes)
    if fold and output.suffix in SUFFIXES:
        raise UserError(f"{output} would hold weights by name: batch normalisation can be folded in programs alone")


@dataclass(frozen=True)
class Proved:
    """A network in both frameworks that computes the same in every layer.

    Attributes:
        jax_model, torch_model: the pair.
        images: random ones of the network's size, (N, H, W, 3).
        metadata: model, classes, preprocessing, metrics, source and proof.
    """

    jax_model: nnx.Module
    torch_model: torch.nn.Module
    images: np.ndarray
    metadata: dict[str, Any]


def prove(checkpoint: Checkpoint, *, source: str) -> Proved:
    """The network of a checkpoint in both frameworks, compared layer by layer.

    Args:
        checkpoint: what `load_checkpoint` returned.
        source: where it is from, for the metadata.

    Raises:
        ArithmeticError: the frameworks do not compute the same, which would be a bug.
    """
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
    return Proved(jax_model, torch_model, images, metadata)


def export(proved: Proved, output: Path, *, fold: bool = False) -> str:
    """Writes a network in the format that the suffix of `output` names, and says what was done.

    Args:
        proved: what `prove` returned.
        output: the file; its suffix is one of TORCH_SUFFIXES or STABLEHLO_SUFFIXES.
        fold: fold batch normalisation into the convolutions, in a program.

    Raises:
        UserError: another suffix, batch normalisation to be folded in a file of weights, a package of the format is
            missing, or the file cannot be written.
    """
    require_output(output, TORCH_SUFFIXES + STABLEHLO_SUFFIXES, fold=fold)
    program = (proved.torch_model, proved.images, {**proved.metadata, "batch_norm_folded": fold})
    match output.suffix:
        case ".pt2":
            write_file(output, torch_program(*program, fold=fold))
        case ".onnx":
            write_file(output, onnx_program(*program, fold=fold))
        case ".stablehlo":
            write_file(output, stablehlo_program(proved.jax_model, *program, fold=fold))
        case _:
            write_weights(output, proved.torch_model.state_dict(), proved.metadata)
    layers = proved.metadata["verified"]["float64"]["layers"]
    return f"{proved.metadata['model']} written to {output}; {layers} layers compute the same in both frameworks"


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
