"""Proves that the two frameworks compute the same network.

python -m convert.verify --model resnet50_lma                               random weights
python -m convert.verify --checkpoint runs/r50 --weights r50.safetensors    a checkpoint against its export
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError

MODEL = flags.DEFINE_string("model", None, "Network to compare with random weights, one of list_models().")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run, to compare with --weights.")
STEP = flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")
WEIGHTS = flags.DEFINE_string("weights", None, "Export of the checkpoint, .safetensors or .pth.")
IMAGES = flags.DEFINE_integer("images", 4, "Number of random images.", lower_bound=1)

# Largest difference allowed, relative to the largest logit. float64 is the judge: a semantic difference shows there.
TOLERANCES = {"float64": 1e-9, "float32": 1e-5}


@dataclass(frozen=True)
class Comparison:
    """Differences between the logits of the two frameworks in one precision.

    Attributes:
        dtype: precision of weights and computation.
        absolute: largest absolute difference.
        relative: that over the largest absolute logit of PyTorch.
        tolerance: the largest `relative` that passes.
    """

    dtype: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.relative <= self.tolerance


def compare(jax_model, torch_model, images: np.ndarray) -> list[Comparison]:
    """Compares the evaluation-mode logits of a model pair, with their own weights, in float64 and in float32.

    Both models are left in evaluation mode, with their weights as they were.

    Args:
        jax_model: a network of lma_jax.
        torch_model: the same network of lma_torch.
        images: (N, H, W, 3), normalised.
    """
    return [_compare(jax_model, torch_model, images, dtype) for dtype in TOLERANCES]


def _compare(jax_model, torch_model, images: np.ndarray, dtype: str) -> Comparison:
    import copy

    import torch

    given = _jax_logits(jax_model, images.astype(dtype))
    torch_model = copy.deepcopy(torch_model).to(getattr(torch, dtype)).eval()
    with torch.inference_mode():
        wanted = torch_model(torch.from_numpy(images.astype(dtype).transpose(0, 3, 1, 2).copy())).numpy()
    absolute = float(np.abs(given - wanted).max())
    return Comparison(dtype, absolute, absolute / float(np.abs(wanted).max()), TOLERANCES[dtype])


def _jax_logits(model, images: np.ndarray) -> np.ndarray:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model.eval()
    graphdef, *states = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    weights, rest = states
    # On a GPU, float32 would otherwise be rounded to TF32.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        weights = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), images.dtype), weights)
        forward = jax.jit(lambda weights, images: nnx.merge(graphdef, weights, rest)(images))
        return np.asarray(forward(weights, jnp.asarray(images)))


def _random_pair(name: str):
    from flax import nnx

    import lma_jax
    import lma_torch
    from convert.weights import to_torch

    try:
        jax_model = nnx.jit(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0)))()
    except ValueError as error:
        raise UserError(str(error)) from error
    torch_model = lma_torch.create_model(name)
    torch_model.load_state_dict(to_torch(jax_model))
    return jax_model, torch_model, 224


def _exported_pair(workdir: str, step: str, weights: Path):
    import lma_torch
    from convert.files import read_weights
    from lma_jax.training.checkpoint import load_checkpoint, restore_model

    state_dict, _ = read_weights(weights)
    checkpoint = load_checkpoint(workdir, step)
    metadata = checkpoint.metadata
    torch_model = lma_torch.create_model(metadata["model"], num_classes=metadata["num_classes"])
    try:
        torch_model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit the checkpoint, a {metadata['model']}: {error}") from error
    return restore_model(checkpoint), torch_model, metadata["preprocessing"]["image_size"]


def main() -> None:
    if MODEL.value and not (CHECKPOINT.value or WEIGHTS.value):
        jax_model, torch_model, size = _random_pair(MODEL.value)
    elif CHECKPOINT.value and WEIGHTS.value and not MODEL.value:
        jax_model, torch_model, size = _exported_pair(CHECKPOINT.value, STEP.value, Path(WEIGHTS.value))
    else:
        raise UserError("give either --model, or --checkpoint and --weights")
    images = np.random.default_rng(0).normal(size=(IMAGES.value, size, size, 3))
    comparisons = compare(jax_model, torch_model, images)
    print(f"logits of {IMAGES.value} random images, {size} x {size}, JAX against PyTorch")
    print(f"{'dtype':8} {'largest difference':>18} {'relative':>9} {'allowed':>8}")
    for row in comparisons:
        verdict = "equal" if row.passed else "DIFFERENT"
        print(f"{row.dtype:8} {row.absolute:18.2e} {row.relative:9.1e} {row.tolerance:8.0e}  {verdict}")
    if not all(row.passed for row in comparisons):
        print("error: the two frameworks do not compute the same", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
