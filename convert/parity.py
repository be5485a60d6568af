"""Verification that a network computes the same in both frameworks, layer by layer."""

import copy
import re
import textwrap
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from lma_jax.intercept import intercept

# Largest difference allowed, relative to the largest value of the same layer's output. float64 decides: a larger
# difference there is semantic, not rounding. The logits in float32 are held to a tenth of the layers' tolerance.
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
        relative: `absolute` divided by the largest absolute value in PyTorch.
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


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        differences: those of every layer that both frameworks have, in the order of computation, the logits last; first
            in float64, then in float32.
        not_verified: paths of the other layers, which only the outputs of the modules around them cover. These are
            layers that exist, or are called, in one framework only, and layers whose outputs have other axes.
    """

    differences: list[Difference]
    not_verified: list[str]

    @property
    def passed(self) -> bool:
        """Whether every layer passed."""
        return all(row.passed for row in self.differences)

    def of(self, dtype: str) -> list[Difference]:
        """The differences in one precision."""
        return [row for row in self.differences if row.dtype == dtype]

    def summary(self) -> dict[str, Any]:
        """What an export records: by dtype the numbers of layers and of those that passed, and the largest difference;
        and the layers that were not verified."""
        by_dtype = {}
        for dtype in TOLERANCES:
            rows = self.of(dtype)
            largest = max(row.relative for row in rows)
            by_dtype[dtype] = {
                "layers": len(rows),
                "passed": sum(row.passed for row in rows),
                "largest_relative": largest,
            }
        return {**by_dtype, "not_verified": self.not_verified}

    def report(self, *, by_layer: bool) -> Iterator[str]:
        """The lines of a table: every layer, or for each dtype only the worst layer and the logits."""
        yield f"{'dtype':8} {'layer':32} {'shape':>20} {'largest difference':>19} {'relative':>9} {'allowed':>8}"
        for dtype in TOLERANCES:
            *layers, logits = self.of(dtype)
            worst = max(layers, key=lambda row: np.nan_to_num(row.relative / row.tolerance, nan=np.inf), default=logits)
            for row in [*layers, logits] if by_layer else dict.fromkeys([worst, logits]):
                shape = " x ".join(map(str, row.shape))
                yield (
                    f"{row.dtype:8} {row.layer:32} {shape:>20} {row.absolute:19.2e} {row.relative:9.1e} "
                    f"{row.tolerance:8.0e}  {'passed' if row.passed else 'FAILED'}"
                )
            failed = next((f"; the first that failed is {row.layer}" for row in self.of(dtype) if not row.passed), "")
            yield f"{dtype:8} {sum(row.passed for row in layers)} of {len(layers)} layers passed{failed}"
        if self.not_verified:
            patterns = Counter(re.sub(r"\b\d+\b|(?<=layer)\d+", "*", path) for path in self.not_verified)
            names = self.not_verified if by_layer else [f"{name} ({count})" for name, count in patterns.items()]
            yield from textwrap.wrap(f"not verified: {', '.join(names)}", 120, subsequent_indent=" " * 14)


def verify(jax_model: nnx.Module, torch_model: torch.nn.Module, images: np.ndarray) -> Verification:
    """Compares the outputs of every layer of a model pair in evaluation mode, with their own weights.

    `jax_model` is put into evaluation mode. Otherwise both models stay as they are.

    Args:
        jax_model: a network of lma_jax.
        torch_model: the same network of lma_torch, on the CPU.
        images: (N, H, W, 3), normalised.
    """
    differences = [row for dtype in TOLERANCES for row in _differences(jax_model, torch_model, images.astype(dtype))]
    compared = {row.layer for row in differences}
    layers = dict.fromkeys([*_torch_layers(torch_model), *_jax_layers(jax_model)])
    return Verification(differences, [layer for layer in layers if layer not in compared])


def _differences(jax_model: nnx.Module, torch_model: torch.nn.Module, images: np.ndarray) -> Iterator[Difference]:
    dtype = str(images.dtype)
    given = _jax_outputs(jax_model, images)
    for layer, wanted in _torch_outputs(torch_model, images, given).items():
        # The groups of SA have an axis of their own in JAX.
        if given[layer].ndim == wanted.ndim:
            value = np.moveaxis(given[layer], -1, 1) if wanted.ndim == 4 else given[layer]
            tolerance = LOGITS_FLOAT32 if (layer, dtype) == (LOGITS, "float32") else TOLERANCES[dtype]
            absolute = float(np.abs(value - wanted).max())
            relative = absolute / (float(np.abs(wanted).max()) or 1.0)
            yield Difference(layer, wanted.shape, dtype, absolute, relative, tolerance)


def _torch_outputs(model: torch.nn.Module, images: np.ndarray, layers: Container[str]) -> dict[str, np.ndarray]:
    """The output of the modules whose paths are among `layers`, in the order of computation, and the logits."""
    model = copy.deepcopy(model).to(getattr(torch, str(images.dtype))).eval()
    outputs: dict[str, np.ndarray] = {}
    called = {name: module for name, module in model.named_modules() if not name or name in layers}
    for name, module in called.items():

        def record(module: torch.nn.Module, inputs: Any, output: torch.Tensor, name: str = name) -> None:
            outputs[name] = output.clone().numpy()  # a copy: an in-place activation may follow

        module.register_forward_hook(record)
    with torch.inference_mode():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    outputs[LOGITS] = outputs.pop("")
    return outputs


def _jax_outputs(model: nnx.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module by path, and the logits."""
    model.eval()
    graphdef, *states = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    weights, rest = states

    @jax.jit
    def forward(weights: Any, images: jax.Array) -> dict[str, jax.Array]:
        outputs: dict[str, jax.Array] = {}

        def record(path: str, module: nnx.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
            outputs[path] = call(*args, **kwargs)
            return outputs[path]

        intercept(nnx.merge(graphdef, weights, rest), record)(images)
        outputs[LOGITS] = outputs.pop("")
        return outputs

    # On a GPU, float32 would otherwise be rounded to TF32.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        weights = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, images.dtype)), weights)
        return {path: np.asarray(output) for path, output in forward(weights, jnp.asarray(images)).items()}


def _torch_layers(model: torch.nn.Module) -> list[str]:
    """The paths of the modules that have weights of their own or no modules within them."""
    return [
        name
        for name, module in model.named_modules()
        if next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None
    ]


def _jax_layers(model: nnx.Module) -> list[str]:
    """The same of a network of lma_jax."""
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    parents = {path.rpartition(".")[0] for path in modules if path}
    return [
        path
        for path, module in modules.items()
        if path not in parents or any(isinstance(value, nnx.Param) for value in vars(module).values())
    ]
