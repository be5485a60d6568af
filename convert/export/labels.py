"""The class names as a text file, one a line, beside an export."""

from pathlib import Path

from lma_jax import files
from lma_jax.checkpoint.format import Checkpoint
from lma_jax.errors import UserError
from lma_jax.hub_folder import labels_text
from lma_jax.overwriting import Kind, require_outputs


def export_labels(checkpoint: Checkpoint, output: Path, *, force: bool) -> str:
    """Writes the class names of a checkpoint. Without `force`, a file that exists must hold them already.

    Returns:
        One line about the result.

    Raises:
        UserError: their names are unknown, or the file is another one or cannot be written.
    """
    names = checkpoint.metadata.class_names
    if names is None:
        raise UserError(f"--labels={output}: {checkpoint} does not know the names of its classes")
    text = labels_text(names)
    require_outputs({"labels": (output, Kind(holds=(text,)))}, force=force)
    files.write(output, text)
    return f"{len(names):,} class names written to {output}"
