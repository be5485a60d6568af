"""A serialised JAX function, .stablehlo: a zip of `function`, which jax.export reads, and metadata.json.

jax.export.deserialize(function).call(images)        images (any, H, W, 3)
"""

import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from convert.export.program import checked_metadata
from convert.export.verified import VerifiedPair
from lma_jax import files
from lma_jax.fold import fold_batch_norm

# The function is lowered for each of these.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(pair: VerifiedPair, output: Path, *, fold: bool) -> None:
    """Writes the function of a pair in evaluation mode, which `pair.jax_model` is put into."""
    pair.jax_model.eval()
    graphdef, state = nnx.split(fold_batch_norm(pair.jax_model) if fold else pair.jax_model)
    shape = (*jax.export.symbolic_shape("batch"), *pair.images.shape[1:])

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(images)

    exported = jax.export.export(logits, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, np.float32))
    function = exported.serialize()
    loaded = jax.export.deserialize(function)

    def run(images: np.ndarray) -> np.ndarray:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):  # a GPU would round to TF32
            return np.asarray(loaded.call(images))

    metadata = checked_metadata(pair, run, fold=fold)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("function", bytes(function))
        file.writestr("metadata.json", json.dumps(metadata))
    files.write(output, buffer.getvalue())
