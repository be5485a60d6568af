"""Checkpoints as files for other tools, verified before they are written.

To add an export format, write a module here with a function `write(pair, output, *, fold)` and add a row to FORMATS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convert.export import onnx, stablehlo, torch_program, weights
from convert.export.verified import VerifiedPair
from lma_jax.errors import UserError, require_packages
from lma_jax.overwriting import Kind
from lma_jax.weight_files import require_suffix


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        write: writes a pair to a path; with fold=True, batch normalisation is folded into the convolutions.
        framework: "torch" or "jax", whose network the file holds.
        is_program: whether the file holds a program, not weights by name. Only programs can be folded.
        packages: modules that it needs.
    """

    write: Callable[..., None]
    framework: str
    is_program: bool
    packages: tuple[str, ...] = ("torch",)


FORMATS = {
    ".safetensors": Format(weights.write, "torch", is_program=False, packages=("safetensors",)),
    ".pth": Format(weights.write, "torch", is_program=False),
    ".pt2": Format(torch_program.write, "torch", is_program=True),
    ".onnx": Format(onnx.write, "torch", is_program=True, packages=("onnx", "onnxruntime", "onnxscript")),
    ".stablehlo": Format(stablehlo.write, "jax", is_program=True, packages=("torch", "flatbuffers")),
}

# The metadata of every format have the summary of the verification.
EXPORT = Kind(holds=("largest_relative", "not_verified"))


def format_of(output: Path, *, framework: str | None = None, fold: bool = False, names: str | None = None) -> Format:
    """The format of a path by its suffix.

    Args:
        output: the file to write.
        framework: "torch" or "jax" to allow its formats alone.
        fold: whether batch normalisation is to be folded.
        names: the library whose names its entries are to have, None for this project's.

    Raises:
        UserError: the suffix is of no such format or of one that cannot be folded or has no names, or a package of it
            is missing.
    """
    require_suffix(output, [suffix for suffix, row in FORMATS.items() if framework in (None, row.framework)])
    found = FORMATS[output.suffix]
    if fold and not found.is_program:
        raise UserError(
            f"{output} holds named weights: "
            "batch normalisation can be folded in programs only (.pt2, .onnx, .stablehlo)"
        )
    if names and found.is_program:
        raise UserError(f"{output} holds a program, without named weights: --names is for .safetensors and .pth")
    require_packages(output.suffix[1:].upper(), *found.packages)
    return found


def export(pair: VerifiedPair, output: Path, *, fold: bool = False) -> str:
    """Writes a network in the format of the output's suffix.

    Args:
        pair: what `verified_pair` returned.
        output: the file to write.
        fold: fold batch normalisation into the convolutions of a program.

    Returns:
        One line about the result.

    Raises:
        UserError: the suffix is unknown, weights cannot be folded, a program has no names, a package of the format is
            missing, or the file cannot be written.
    """
    format_of(output, fold=fold, names=pair.names).write(pair, output, fold=fold)
    layers = pair.metadata["verified"]["float64"]["layers"] - 1  # without the logits
    return (
        f"{pair.metadata['model']} written to {output}; {layers} layers and the logits are the same in both frameworks"
    )
