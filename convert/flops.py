"""Multiply-accumulates (MACs) of the networks, counted in both frameworks and in the paper's convention.

python -m convert.flops --model resnet50_lma [--by-layer] [--input-size 224x320]
python -m convert.flops --model "*" --json macs.json --csv macs.csv

conv + linear   convolutions and matrix products without biases, LMA's two K-tap correlations being convolutions;
                in JAX from the jaxpr, in PyTorch by torch.utils.flop_counter, and equal layer by layer
aten            ptflops' count of the same in its backend "aten", which adds the biases
Table 1         the paper's convention, ptflops' backend "pytorch" with count_functional=False: the above, and for n
                input values 2n in a batch or group normalisation and n in a layer normalisation, ReLU, ReLU6 or pooling
                module; LMA as published,
                with pooling modules: 2 * C * H * W for them and K * C * (H + W) for the correlations

For a network of your own: `lma_jax.flops.macs_by_layer`, `lma_torch.flops.macs_by_layer`, and `table_macs` here. For
ptflops itself: `custom_modules_hooks={LMA: lma_hook}`.
"""

import copy
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import torch
from absl import flags
from flax import nnx
from torch import Tensor, nn

import lma_jax.flops
import lma_torch.flops
from convert.results import csv_text, write_text
from lma_jax import cli
from lma_jax.errors import UserError
from lma_torch import LMA

# A line of a table: column -> value, None where nothing was counted.
Row = dict[str, Any]

# Table 1's convention, 224 x 224, 1000 classes: exact counts of the published networks.
PUBLISHED = {
    "mobilenetv2": 320_300_008,
    "mobilenetv2_lma": 324_904_552,
    "resnet18": 1_822_177_768,
    "resnet18_lma": 1_823_912_424,
    "resnet34": 3_675_629_032,
    "resnet34_lma": 3_678_861_800,
    "resnet50": 4_121_925_096,
    "resnet50_lma": 4_135_429_608,
    "resnet50_se": 4_129_976_392,
    "resnet50_cbam": 4_128_375_668,
    "resnet50_bam": 4_205_132_220,
    "resnet50_gsop": 6_405_416_680,
    "resnet50_gc": 4_129_991_203,
    "resnet50_eca": 4_127_532_264,
    "resnet50_sa": 4_130_204_136,
    "resnet50_ta": 4_169_186_996,
    "resnet101": 7_849_500_136,
    "resnet101_lma": 7_872_265_704,
    "resnet152": 11_580_687_848,
    "resnet152_lma": 11_614_320_104,
}


def _with_bias(products: int, module: nn.Module, output: Tensor) -> int:
    return products + (0 if module.bias is None else output.numel())


def _lma(module: Any, x: Tensor, _: Tensor) -> int:
    n, channels, height, width = x.shape
    return n * channels * (2 * height * width + module.kernel_size * (height + width))


# Table 1's convention: (module, its input, its output) -> MACs. Nothing else counts.
TABLE_RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: lambda module, x, y: _with_bias(y.numel() * module.weight[0].numel(), module, y),
    nn.Linear: lambda module, x, y: _with_bias(y.numel() * module.in_features, module, y),
    LMA: _lma,
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm), lambda module, x, y: x.numel() * (2 if module.affine else 1)
    ),
    nn.LayerNorm: lambda module, x, y: x.numel(),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d), lambda module, x, y: x.numel()),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), lambda module, x, y: x.numel()),
}


def lma_hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """ptflops' hook for LMA, whose arithmetic it does not see: `custom_modules_hooks={LMA: lma_hook}`."""
    module.__flops__ += _lma(module, inputs[0], output)


def table_macs(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """MACs of every layer in a call in evaluation mode, in the convention of the paper's Table 1, by dotted path.

    This is ptflops' count, layer by layer and without ptflops, for the modules that TABLE_RULES names.

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
    """ptflops' count for one image of `size` = (height, width); it leaves traces in the network.

    Args:
        model: a PyTorch network; on the meta device nothing is computed.
        size: height and width in pixels.
        backend: "pytorch", in Table 1's convention, or "aten".

    Raises:
        RuntimeError: the network cannot be run; ptflops has printed why.
    """
    from ptflops import get_model_complexity_info

    options: dict[str, Any] = dict(backend=backend, print_per_layer_stat=False, as_strings=False)
    if backend == "pytorch":
        options |= dict(backend_specific_config={"count_functional": False}, custom_modules_hooks={LMA: lma_hook})
    else:  # It sees operations and no modules.
        model = lma_torch.flops.as_published(model)
    with torch.no_grad():
        macs, _ = get_model_complexity_info(model, (3, *size), **options)
    if macs is None:
        raise RuntimeError("ptflops could not run the network")
    return int(macs)


def ptflops_version() -> str | None:
    """The version of ptflops, or None where it cannot be imported: it is absent, or torchvision beside it is broken."""
    try:
        import ptflops  # noqa: F401
    except (ImportError, RuntimeError):
        return None
    return metadata.version("ptflops")


@dataclass(frozen=True)
class Count:
    """MACs of a network for one image; what was not counted is None.

    Attributes:
        model: name of the network.
        size: height and width of the image in pixels.
        parameters: number of weights.
        jax: convolutions and matrix products by layer, from the jaxpr.
        torch: the same by torch.utils.flop_counter.
        table: Table 1's convention by layer, by TABLE_RULES.
        aten: total with biases, by ptflops where it can be imported.
        table1: total in Table 1's convention, by ptflops where it can be imported.
    """

    model: str
    size: tuple[int, int]
    parameters: int
    jax: dict[str, int] | None = None
    torch: dict[str, int] | None = None
    table: dict[str, int] | None = None
    aten: int | None = None
    table1: int | None = None

    @property
    def published(self) -> int | None:
        """The published network's MACs in Table 1's convention, where they are known."""
        return PUBLISHED.get(self.model) if self.size == (224, 224) else None

    @property
    def summary(self) -> Row:
        """The network's row in the table."""
        totals = {name: macs and sum(macs.values()) for name, macs in (("jax", self.jax), ("torch", self.torch))}
        row = dict(model=self.model, parameters=self.parameters, **totals, aten=self.aten, table1=self.table1)
        return {**row, "published": self.published}

    @property
    def layers(self) -> list[Row]:
        """A row for every layer that counts in any convention; what lies inside an LMA adds to it."""
        counts = {"jax": self.jax, "torch": self.torch, "table1": self.table}
        owners = {path: _owner(path, self.table or {}) for macs in reversed(counts.values()) for path in macs or ()}
        rows: dict[str, Row] = {}
        for path, owner in owners.items():
            empty = {name: None if macs is None else 0 for name, macs in counts.items()}
            row = rows.setdefault(owner, {"layer": owner, **empty})
            for name, macs in counts.items():
                if macs is not None:
                    row[name] += macs.get(path, 0)
        return list(rows.values())

    @property
    def problems(self) -> list[str]:
        """What should be equal and is not."""
        jax, torch, table = self.jax, self.torch, self.table
        found = []
        if jax is not None and torch is not None:
            layer = next((path for path in (*torch, *jax) if jax.get(path) != torch.get(path)), None)
            if layer is not None:
                found += [f"layer {layer!r} has {jax.get(layer, 0):,} MACs in JAX, {torch.get(layer, 0):,} in PyTorch"]
        if table is not None and sum(table.values()) != self.table1:
            found += [f"the layers add up to {sum(table.values()):,} MACs in Table 1's convention, not {self.table1:,}"]
        if None not in (self.table1, self.published) and self.table1 != self.published:
            found += [f"{self.table1:,} MACs in Table 1's convention, published are {self.published:,}"]
        return [f"{self.model}: {problem}" for problem in found]


def _owner(path: str, layers: Iterable[str]) -> str:
    """The layer of `layers` that is at `path` or around it, else `path` itself."""
    return next((layer for layer in layers if f"{path}.".startswith(f"{layer}." if layer else "")), path)


def count(
    name: str, size: tuple[int, int] = (224, 224), *, jax_model: Any = None, torch_model: nn.Module | None = None
) -> Count:
    """Counts a network pair, or one of the two.

    Args:
        name: what to call it.
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
        counts |= dict(
            parameters=sum(weight.numel() for weight in torch_model.parameters()), torch=by_layer, table=table
        )
        if ptflops_version():
            for key, backend in (("aten", "aten"), ("table1", "pytorch")):
                counts[key] = ptflops_macs(copy.deepcopy(torch_model), size, backend)
        else:
            # In TABLE_RULES a convolution or linear layer has nothing more than its bias.
            counts["aten"] = sum(table.get(path, macs) for path, macs in by_layer.items())
            counts["table1"] = sum(table.values())
    return Count(name, size, **counts)


def legend() -> dict[str, str]:
    """What each column counts, and by what."""
    version = ptflops_version()
    counter = f"ptflops {version}" if version else "own count by the rules of ptflops, which cannot be imported"
    return {
        "jax, torch": "convolutions (LMA's two correlations among them) and matrix products, without biases; "
        f"from the jaxpr, and by torch.utils.flop_counter of PyTorch {torch.__version__}",
        "aten": f'{counter}, backend "aten": the same with biases',
        "table1": f'{counter}, backend "pytorch" with count_functional=False, LMA by hook: for n input values also 2n '
        "in a batch or group normalisation, n in a layer normalisation, ReLU, ReLU6 or pooling module, "
        "2n in LMA's pooling",
        "published": "the published networks in the convention of table1",
    }


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "224" or "224x320"; a UserError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise UserError(f"--input_size is a number of pixels or <height>x<width>, not {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _count_by_name(name: str, size: tuple[int, int], framework: str) -> Count:
    models: dict[str, Any] = {}
    if framework in ("both", "jax"):
        models["jax_model"] = nnx.eval_shape(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0)))
    if framework in ("both", "torch"):
        models["torch_model"] = lma_torch.create_model(name, device="meta")
    return count(name, size, **models)


def _table(rows: list[Row]) -> str:
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


def _json(counts: list[Count]) -> str:
    models = [{**count.summary, "input_size": count.size, "layers": count.layers} for count in counts]
    return json.dumps({"columns": legend(), "models": models}, indent=1) + "\n"


def define_flags() -> None:
    """Adds the options of the command; not on import, since commands share names."""
    flags.DEFINE_string("model", "resnet50_lma", 'Definition, or a pattern of list_models() such as "resnet*".')
    flags.DEFINE_bool("by_layer", False, "Also print every layer.")
    flags.DEFINE_string("input_size", "224", "Pixels of the image: one number, or <height>x<width>.")
    flags.DEFINE_enum("framework", "both", ["both", "jax", "torch"], "Where to count.")
    flags.DEFINE_string("json", None, "File for the results, every layer included.")
    flags.DEFINE_string("csv", None, "File for the table as printed; with --by_layer, that of the layers.")
    flags.DEFINE_alias("by-layer", "by_layer")
    flags.DEFINE_alias("input-size", "input_size")


def main() -> None:
    options = flags.FLAGS
    size = parse_size(options.input_size)
    counts = [_count_by_name(name, size, options.framework) for name in cli.models_named(options.model)]
    print(f"multiply-accumulates of one image, {size[0]} x {size[1]}")
    print(_table([count.summary for count in counts]))
    for name, meaning in legend().items():
        print(textwrap.fill(meaning, 110, initial_indent=f"{name:12}", subsequent_indent=" " * 12))
    if options.by_layer:
        for count in counts:
            print(f"\n{count.model} by layer, table1 by its rules\n{_table(count.layers)}")
    if options.csv and options.by_layer:
        write_text(options.csv, csv_text([{"model": count.model, **row} for count in counts for row in count.layers]))
    elif options.csv:
        write_text(options.csv, csv_text([count.summary for count in counts]))
    if options.json:
        write_text(options.json, _json(counts))
    problems = [problem for count in counts for problem in count.problems]
    if problems:
        print("error:", "; ".join(problems), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
