"""Proves that the two frameworks compute the same network, layer by layer.

python -m convert.verify --model resnet50_lma                               random weights
python -m convert.verify --checkpoint runs/r50 --weights r50.safetensors    a checkpoint against its export
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError

MODEL = flags.DEFINE_string("model", None, "Network to compare with random weights, one of list_models().")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a training run, to compare with --weights.")
STEP = flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")
WEIGHTS = flags.DEFINE_string("weights", None, "Export of the checkpoint, .safetensors or .pth.")
IMAGES = flags.DEFINE_integer("images", 4, "Number of random images.", lower_bound=1)
FOLDER = flags.DEFINE_string("image_folder", None, "Folder of images to compare on instead.")
BY_LAYER = flags.DEFINE_bool("by_layer", False, "Print every layer, not only the logits and the worst layer.")
JSON = flags.DEFINE_string("json", None, "File to write all differences to.")

# Largest difference allowed, relative to the largest value of the same layer's output. float64 is the judge: a
# difference of meaning shows there. The logits in float32 are held to a tenth of their layers' tolerance.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
LOGITS = "logits"
LOGITS_FLOAT32 = 1e-5


@dataclass(frozen=True)
class Difference:
    """The difference between the outputs of one layer in the two frameworks.

    Attributes:
        layer: dotted path of the module, or "logits".
        shape: of the output, channels first.
        dtype: precision of weights and computation.
        absolute: largest absolute difference.
        relative: that over the largest absolute value in PyTorch.
        tolerance: the largest `relative` that passes.
    """

    layer: str
    shape: tuple[int, ...]
    dtype: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.relative <= self.tolerance


def compare(jax_model, torch_model, images: np.ndarray) -> list[Difference]:
    """Compares every layer of a model pair in evaluation mode, with their own weights, in float64 and in float32.

    The layers are those with one path in both frameworks, in the order in which they are computed; the logits come
    last. Both models are left in evaluation mode, with their weights as they were.

    Args:
        jax_model: a network of lma_jax.
        torch_model: the same network of lma_torch.
        images: (N, H, W, 3), normalised.
    """
    return [difference for dtype in TOLERANCES for difference in _compare(jax_model, torch_model, images, dtype)]


def _compare(jax_model, torch_model, images: np.ndarray, dtype: str) -> Iterator[Difference]:
    given = _jax_outputs(jax_model, images.astype(dtype))
    for layer, wanted in _torch_outputs(torch_model, images.astype(dtype)).items():
        if layer in given:
            value = np.moveaxis(given[layer], -1, 1) if wanted.ndim == 4 else given[layer]
            tolerance = LOGITS_FLOAT32 if (layer, dtype) == (LOGITS, "float32") else TOLERANCES[dtype]
            absolute = float(np.abs(value - wanted).max())
            relative = absolute / (float(np.abs(wanted).max()) or 1.0)
            yield Difference(layer, wanted.shape, dtype, absolute, relative, tolerance)


def _torch_outputs(model, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module by path, in the order of computation, and the logits."""
    import copy

    import torch

    model = copy.deepcopy(model).to(getattr(torch, str(images.dtype))).eval()
    outputs: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        # A copy: an activation in place may follow.
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output.clone().numpy()}))
    with torch.inference_mode():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    outputs[LOGITS] = outputs.pop("")
    return outputs


def _jax_outputs(model, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module by path, and the logits."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model.eval()
    graphdef, *states = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    weights, rest = states

    @jax.jit
    def forward(weights: Any, images: jax.Array) -> dict[str, jax.Array]:
        bound = nnx.merge(graphdef, weights, rest)
        with _recorded(bound) as outputs:
            logits = bound(images)
        return {**outputs, LOGITS: logits}

    # On a GPU, float32 would otherwise be rounded to TF32.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        weights = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), images.dtype), weights)
        return {path: np.asarray(output) for path, output in forward(weights, jnp.asarray(images)).items()}


@contextmanager
def _recorded(model: Any) -> Iterator[dict[str, Any]]:
    """Collects what the modules of an NNX model return, by dotted path, while it is called."""
    from unittest import mock

    from flax import nnx

    paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    outputs: dict[str, Any] = {}

    def recording(call: Any) -> Any:
        def recorded(module: Any, *arguments: Any, **options: Any) -> Any:
            output = call(module, *arguments, **options)
            outputs[paths[id(module)]] = output
            return output

        return recorded

    kinds = {type(module) for _, module in nnx.iter_modules(model) if callable(module)}
    patches = [mock.patch.object(kind, "__call__", recording(kind.__call__)) for kind in kinds]
    for patch in patches:
        patch.start()
    try:
        yield outputs
    finally:
        for patch in patches:
            patch.stop()
        outputs.pop("", None)


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
    return jax_model, torch_model, None


def _exported_pair(workdir: str, step: str, weights: Path):
    import lma_torch
    from convert.files import read_weights
    from lma_jax.data.transforms import preprocessing_from
    from lma_jax.training.checkpoint import load_checkpoint, restore_model

    state_dict, _ = read_weights(weights)
    checkpoint = load_checkpoint(workdir, step)
    metadata = checkpoint.metadata
    torch_model = lma_torch.create_model(metadata["model"], num_classes=metadata["num_classes"])
    try:
        torch_model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit the checkpoint, a {metadata['model']}: {error}") from error
    return restore_model(checkpoint), torch_model, preprocessing_from(metadata["preprocessing"])


def _images(preprocessing) -> np.ndarray:
    """Random images, or those of --image_folder as evaluation sees them."""
    from configs import common
    from lma_jax.data.sources import IMAGE_SUFFIXES
    from lma_jax.data.transforms import BadImageError, eval_image, preprocessing_from

    preprocessing = preprocessing or preprocessing_from(common.get_config())
    if FOLDER.value is None:
        size = preprocessing.image_size
        return np.random.default_rng(0).normal(size=(IMAGES.value, size, size, 3))
    paths = sorted(path for path in Path(FOLDER.value).glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{FOLDER.value} holds no images")
    try:
        pixels = np.stack([eval_image(path.read_bytes(), preprocessing) for path in paths])
    except (BadImageError, OSError) as error:
        raise UserError(f"an image in {FOLDER.value} cannot be read: {error}") from error
    return (pixels / 255 - preprocessing.mean) / preprocessing.std


def report(differences: list[Difference], *, by_layer: bool) -> Iterator[str]:
    """The lines of a table: every layer, or for each dtype the logits and the worst layer."""
    yield f"{'dtype':8} {'layer':32} {'shape':>20} {'largest difference':>19} {'relative':>9} {'allowed':>8}"
    for dtype in TOLERANCES:
        rows = [row for row in differences if row.dtype == dtype]
        worst = max(
            rows[:-1], key=lambda row: np.nan_to_num(row.relative / row.tolerance, nan=np.inf), default=rows[-1]
        )
        first = next((row for row in rows if not row.passed), None)
        for row in rows if by_layer else dict.fromkeys([worst, rows[-1]]):
            verdict = "equal" if row.passed else "DIFFERENT"
            shape = " x ".join(map(str, row.shape))
            yield (
                f"{row.dtype:8} {row.layer:32} {shape:>20} {row.absolute:19.2e} {row.relative:9.1e} "
                f"{row.tolerance:8.0e}  {verdict}"
            )
        passed = sum(row.passed for row in rows[:-1])
        begins = "" if first is None else f"; the first that differs is {first.layer}"
        yield f"{dtype:8} {passed} of {len(rows) - 1} layers are equal{begins}"


def main() -> None:
    if MODEL.value and not (CHECKPOINT.value or WEIGHTS.value):
        jax_model, torch_model, preprocessing = _random_pair(MODEL.value)
    elif CHECKPOINT.value and WEIGHTS.value and not MODEL.value:
        jax_model, torch_model, preprocessing = _exported_pair(CHECKPOINT.value, STEP.value, Path(WEIGHTS.value))
    else:
        raise UserError("give either --model, or --checkpoint and --weights")
    images = _images(preprocessing)
    differences = compare(jax_model, torch_model, images)
    print(f"JAX against PyTorch on {len(images)} images, {images.shape[1]} x {images.shape[2]}")
    print("\n".join(report(differences, by_layer=BY_LAYER.value)))
    if JSON.value:
        rows = [{**asdict(row), "passed": row.passed} for row in differences]
        try:
            Path(JSON.value).write_text(json.dumps(rows, indent=1))
        except OSError as error:
            raise UserError(f"cannot write {JSON.value}: {error.strerror}") from error
    if not all(row.passed for row in differences):
        print("error: the two frameworks do not compute the same", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
