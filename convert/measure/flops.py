"""Multiply-accumulates (MACs) of network pairs, in both frameworks and in the convention of the paper's Table 1.

For a network of your own: `lma_jax.flops.macs_by_layer`, `lma_torch.flops.macs_by_layer`, and `table_macs` here; or
ptflops, which sees the pools and convolutions of LMA as it sees those of any module.
"""

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import torch
from flax import nnx
from torch import Tensor, nn

import lma_jax.flops
import lma_torch.flops
from convert.measure.paper import EXACT_MACS

# A line of a table: values by column, None where nothing was counted.
Row = dict[str, Any]


def _with_bias(products: int, module: nn.Module, output: Tensor) -> int:
    return products + (0 if module.bias is None else output.numel())


# Table 1's convention: (module, its input, its output) -> MACs. Other modules do not count.
TABLE_RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: lambda module, x, y: _with_bias(y.numel() * module.weight[0].numel(), module, y),
    nn.Linear: lambda module, x, y: _with_bias(y.numel() * module.in_features, module, y),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm), lambda module, x, y: x.numel() * (2 if module.affine else 1)
    ),
    nn.LayerNorm: lambda module, x, y: x.numel(),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d), lambda module, x, y: x.numel()),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), lambda module, x, y: x.numel()),
}


def table_macs(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """MACs of every layer in a call in evaluation mode, in the convention of the paper's Table 1, by dotted path.

    This is the count of ptflops by layer, without ptflops, for the modules in TABLE_RULES.

    Args:
        model: a PyTorch network on the device of the inputs; on the meta device nothing is computed.
        inputs: tensors.
    """
    macs: dict[str, int] = {}
    handles = []
    for path, module in model.named_modules():
        if type(module) in TABLE_RULES:

            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                macs[path] = macs.get(path, 0) + TABLE_RULES[type(module)](module, inputs[0], output)

            handles.append(module.register_forward_hook(hook))
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return macs


def ptflops_macs(model: nn.Module, size: tuple[int, int], backend: str) -> int:
    """The count of ptflops for one image. It leaves attributes behind in the network.

    Args:
        model: a PyTorch network; on the meta device nothing is computed.
        size: height and width in pixels.
        backend: "pytorch", in Table 1's convention, or "aten".

    Raises:
        RuntimeError: ptflops cannot run the network, and has printed the reason.
    """
    from ptflops import get_model_complexity_info

    options: dict[str, Any] = dict(backend=backend, print_per_layer_stat=False, as_strings=False)
    if backend == "pytorch":
        options |= dict(backend_specific_config={"count_functional": False})
    with torch.no_grad():
        macs, _ = get_model_complexity_info(model, (3, *size), **options)
    if macs is None:
        raise RuntimeError("ptflops could not run the network")
    return int(macs)


def ptflops_version() -> str | None:
    """The version of ptflops, or None if it cannot be imported (it is missing, or torchvision is broken)."""
    try:
        import ptflops  # noqa: F401
    except (ImportError, RuntimeError):
        return None
    return metadata.version("ptflops")


@dataclass(frozen=True)
class Count:
    """MACs of a network for one image. What was not counted is None.

    Attributes:
        model: name of the network.
        size: height and width of the image in pixels.
        parameters: number of parameters.
        jax: convolutions and matrix products by layer, from the jaxpr.
        torch: the same by torch.utils.flop_counter.
        table: Table 1's convention by layer, by TABLE_RULES.
        aten: total with biases, by ptflops if it can be imported.
        table1: total in Table 1's convention, by ptflops if it can be imported.
        torch_parameters: number of parameters in PyTorch.
    """

    model: str
    size: tuple[int, int]
    parameters: int
    jax: dict[str, int] | None = None
    torch: dict[str, int] | None = None
    table: dict[str, int] | None = None
    aten: int | None = None
    table1: int | None = None
    torch_parameters: int | None = None

    @property
    def published(self) -> int | None:
        """The MACs of the published network in Table 1's convention, None if they are unknown."""
        return EXACT_MACS.get(self.model) if self.size == (224, 224) else None

    @property
    def summary(self) -> Row:
        """The network's row in the table."""
        totals = {name: macs and sum(macs.values()) for name, macs in (("jax", self.jax), ("torch", self.torch))}
        row = dict(model=self.model, parameters=self.parameters, **totals, aten=self.aten, table1=self.table1)
        return {**row, "published": self.published}

    @property
    def layers(self) -> list[Row]:
        """A row for every layer with MACs in any convention."""
        counts = {"jax": self.jax, "torch": self.torch, "table1": self.table}
        paths = dict.fromkeys(path for macs in reversed(counts.values()) for path in macs or ())
        return [
            {"layer": path, **{name: macs and macs.get(path, 0) for name, macs in counts.items()}} for path in paths
        ]

    @property
    def problems(self) -> list[str]:
        """The counts that should be equal and are not, a line for each."""
        jax, torch, table = self.jax, self.torch, self.table
        found = []
        if self.torch_parameters not in (None, self.parameters):
            found += [f"{self.parameters:,} parameters in JAX, {self.torch_parameters:,} in PyTorch"]
        if jax is not None and torch is not None:
            layer = next((path for path in (*torch, *jax) if jax.get(path) != torch.get(path)), None)
            if layer is not None:
                found += [f"layer {layer!r} has {jax.get(layer, 0):,} MACs in JAX, {torch.get(layer, 0):,} in PyTorch"]
        if table is not None and sum(table.values()) != self.table1:
            found += [f"the layers add up to {sum(table.values()):,} MACs in Table 1's convention, not {self.table1:,}"]
        if None not in (self.table1, self.published) and self.table1 != self.published:
            found += [f"{self.table1:,} MACs in Table 1's convention, published are {self.published:,}"]
        return [f"{self.model}: {problem}" for problem in found]


def count(
    name: str, size: tuple[int, int] = (224, 224), *, jax_model: Any = None, torch_model: nn.Module | None = None
) -> Count:
    """Counts a network pair, or one of the two.

    Args:
        name: name of the pair in the result.
        size: height and width of the image in pixels.
        jax_model: the network of lma_jax, or its shapes (nnx.eval_shape).
        torch_model: the same network of lma_torch; on the meta device nothing is computed.
    """
    counts: dict[str, Any] = {}
    if jax_model is not None:
        counts["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(jax_model, nnx.Param)))
        images = jax.ShapeDtypeStruct((1, *size, 3), "float32")
        counts["jax"] = lma_jax.flops.macs_by_layer(jax_model, images)
    if torch_model is not None:
        weight = next(torch_model.parameters())
        image = torch.empty((1, 3, *size), device=weight.device, dtype=weight.dtype)
        by_layer, table = lma_torch.flops.macs_by_layer(torch_model, image), table_macs(torch_model, image)
        counts |= dict(torch=by_layer, table=table)
        counts["torch_parameters"] = sum(weight.numel() for weight in torch_model.parameters())
        if ptflops_version():
            for key, backend in (("aten", "aten"), ("table1", "pytorch")):
                counts[key] = ptflops_macs(copy.deepcopy(torch_model), size, backend)
        else:
            # TABLE_RULES adds only the bias to a convolution or linear layer.
            counts["aten"] = sum(table.get(path, macs) for path, macs in by_layer.items())
            counts["table1"] = sum(table.values())
    counts.setdefault("parameters", counts.get("torch_parameters"))
    return Count(name, size, **counts)


def legend() -> dict[str, str]:
    """What each column counts, and with which tool."""
    version = ptflops_version()
    counter = f"ptflops {version}" if version else "counted here by the rules of ptflops, which cannot be imported"
    return {
        "jax, torch": "convolutions (LMA's two correlations among them) and matrix products, without biases; "
        f"from the jaxpr, and by torch.utils.flop_counter of PyTorch {torch.__version__}",
        "aten": f'{counter}, backend "aten": the same with biases',
        "table1": f'{counter}, backend "pytorch" with count_functional=False: for n input values also 2n in a batch '
        "or group normalisation, n in a layer normalisation, ReLU, ReLU6 or pooling module",
        "published": "the published networks in the convention of table1",
    }


def count_by_name(name: str, size: tuple[int, int] = (224, 224), framework: str = "both") -> Count:
    """Counts a network of `list_models()` in "jax", "torch" or "both" frameworks, without building its weights."""
    models: dict[str, Any] = {}
    if framework in ("both", "jax"):
        models["jax_model"] = nnx.eval_shape(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0)))
    if framework in ("both", "torch"):
        models["torch_model"] = lma_torch.create_model(name, device="meta")
    return count(name, size, **models)


def format_table(rows: Sequence[Row]) -> str:
    """Rows in aligned columns, without those in which nothing was counted."""
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [columns]
    for row in rows:
        values = [row[name] for name in columns]
        cells += [["-" if value is None else f"{value:,}" if isinstance(value, int) else value for value in values]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in cells
    )


def to_json(counts: Iterable[Count]) -> str:
    """All counts, every layer included, with what each column counts."""
    models = [{**count.summary, "input_size": count.size, "layers": count.layers} for count in counts]
    return json.dumps({"columns": legend(), "models": models}, indent=1) + "\n"
