"""The outputs of all layers in the two frameworks, side by side."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        # Layers within SA lie otherwise in memory: groups have an axis of their own.
        if layer in given and given[layer].ndim == wanted.ndim:
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


def summary(differences: list[Difference]) -> dict[str, dict[str, Any]]:
    """What an export records of its proof: for each dtype the number of layers, of equal ones, and the worst of all."""
    summary = {}
    for dtype in TOLERANCES:
        rows = [row for row in differences if row.dtype == dtype]
        relative = max(row.relative for row in rows)
        summary[dtype] = {"layers": len(rows), "equal": sum(row.passed for row in rows), "largest_relative": relative}
    return summary


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
