"""MACs: the exact published numbers, JAX against PyTorch layer by layer, ptflops, and networks of a user."""

import csv
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

import lma_jax.flops
import lma_torch.flops
from convert import flag_values
from convert.measure import flops
from lma_jax import LMA, cli
from lma_jax.errors import UserError
from lma_jax.layers import conv
from tests.helpers.arrays import normal, relative_error, to_nhwc
from tests.helpers.commands import fail, run
from tests.helpers.published import BACKBONES_AND_LMA
from tests.helpers.shapes import jax_shapes, torch_shapes

# Every kind of layer, in little time.
SAMPLE = "resnet18_lma", "mobilenetv2_lma"


def counted(name: str, size: tuple[int, int] = (224, 224)) -> flops.Count:
    return flops.count(name, size, jax_model=jax_shapes(name), torch_model=torch_shapes(name))


def shapes(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("name", BACKBONES_AND_LMA)
def test_both_frameworks_meet_the_exact_figures_and_agree_in_every_layer(name):
    result = counted(name)
    parameters, table1, products = BACKBONES_AND_LMA[name]
    assert result.table is not None
    assert result.jax is not None
    assert result.table1 == sum(result.table.values()) == table1
    assert result.jax == result.torch
    assert sum(result.jax.values()) == products
    assert result.aten == products + 1000  # the bias of the head
    assert result.published == table1
    assert result.problems == []
    assert result.parameters == parameters == sum(weight.numel() for weight in torch_shapes(name).parameters())


@pytest.mark.parametrize(("name", "size"), [(SAMPLE[0], (20, 20)), (SAMPLE[1], (33, 70))])
def test_they_agree_at_any_size_also_where_maps_have_one_pixel(name, size):
    result = counted(name, size)
    assert result.jax == result.torch
    assert result.problems == []
    assert result.published is None


def test_plain_ptflops_counts_lma():
    ptflops = pytest.importorskip("ptflops")
    pools, products = 64 * 2 * 7 * 9, 64 * 3 * (7 + 9)
    # Its default counts every pool and ReLU twice, as a module and as a function.
    modules_alone = {"backend_specific_config": {"count_functional": False}}
    for options, expected in (
        ({}, 2 * pools + products),
        (modules_alone, pools + products),
        ({"backend": "aten"}, products),
    ):
        counted = ptflops.get_model_complexity_info(lma_torch.LMA(64), (64, 7, 9), False, False, **options)
        assert counted == (expected, 6)


def test_without_ptflops_the_rules_here_count_the_same_and_the_legend_says_so(monkeypatch):
    expected = counted("resnet18_lma")
    monkeypatch.setattr(flops, "ptflops_version", lambda: None)
    assert counted("resnet18_lma") == expected
    assert "ptflops, which cannot be imported" in flops.legend()["table1"]


def test_a_broken_ptflops_is_no_ptflops(monkeypatch):
    monkeypatch.setitem(sys.modules, "ptflops", None)
    assert flops.ptflops_version() is None


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_lma_as_published_computes_the_same(x64, memory_format):
    layer = LMA(40, kernel_size=5, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    twin = lma_torch.LMA(40, kernel_size=5, dtype=torch.float64)
    x = normal(2, 40, 6, 9)
    assert relative_error(lma_jax.flops.lma_as_published(layer, to_nhwc(x)), layer(to_nhwc(x))) < 1e-12
    maps = torch.from_numpy(x).to(memory_format=memory_format)
    expected, gates, seen = twin(maps), twin.gates(maps), []
    twin.conv_w.register_forward_hook(lambda *call: seen.append(call))
    watched = twin(maps)
    assert relative_error(watched, expected) < 1e-12
    assert watched.is_contiguous(memory_format=memory_format)
    assert all(relative_error(gate, wanted) < 1e-12 for gate, wanted in zip(twin.gates(maps), gates))
    assert len(seen) == 2
    with pytest.raises(ValueError, match=r"LMA\(40\) takes"):
        twin(maps[:, :39])


class Own(nnx.Module):
    """A user's module: LMA, a name scope, products of its own, a scan, a branch, and a layer used twice."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = conv(3, 8, 3, rngs=rngs)
        self.attention = LMA(8, kernel_size=3, rngs=rngs)
        self.twice = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.attention(self.stem(x))
        with jax.named_scope("mine/deep"):
            x = self.dropout(self.twice(self.twice(x))).mean((1, 2))
        x = jax.lax.scan(lambda carry, _: (carry @ jnp.ones((8, 8)), None), x, length=5)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ jnp.ones((8, 2)), lambda x: x[:, :2], x)


class OwnTorch(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.attention = lma_torch.LMA(8, kernel_size=3)
        self.twice = torch.nn.Linear(8, 8)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        x = self.attention(self.stem(x)).permute(0, 2, 3, 1)
        x = self.dropout(self.twice(self.twice(x))).mean((1, 2))
        for _ in range(5):
            x = x @ torch.ones(8, 8)
        return functional.linear(x, torch.ones(2, 8))


def test_a_users_modules_are_counted_and_left_as_they_are():
    expected = {
        "stem": 2 * 4 * 5 * 8 * 27,
        "attention.conv_h": 2 * 3 * 8 * 4,
        "attention.conv_w": 2 * 3 * 8 * 5,
        "twice": 2 * 4 * 5 * 64 * 2,
        "": 2 * (5 * 64 + 16),
    }
    model, twin = Own(nnx.Rngs(0)), OwnTorch()
    before = nnx.state(model, nnx.Param)
    assert lma_jax.flops.macs_by_layer(model, shapes(2, 4, 5, 3)) == expected
    assert lma_torch.flops.macs_by_layer(twin, torch.ones(2, 3, 4, 5)) == expected
    assert lma_jax.flops.count_macs(model, shapes(2, 4, 5, 3)) == sum(expected.values())
    assert lma_torch.flops.count_macs(twin, torch.ones(2, 3, 4, 5)) == sum(expected.values())
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.state(model, nnx.Param)))
    assert type(model.stem) is type(conv(1, 1, 1, rngs=nnx.Rngs(0)))
    assert not model.dropout.deterministic
    assert twin.training


def test_the_table_convention_leaves_a_module_as_it_is():
    twin = OwnTorch()
    twin.dropout.eval()
    macs = flops.table_macs(twin, torch.ones(2, 3, 4, 5))
    pools, products = dict.fromkeys(("attention.pool_h", "attention.pool_w"), 2 * 8 * 20), 2 * 8 * 3
    correlations = {"attention.conv_h": 4 * products, "attention.conv_w": 5 * products}
    assert macs == {"stem": 8640, **pools, **correlations, "twice": 2 * 2 * 20 * 72}
    assert (twin.training, twin.twice.training, twin.dropout.training) == (True, True, False)
    assert not any(module._forward_hooks for module in twin.modules())


def test_the_layer_itself_is_counted():
    assert lma_jax.flops.count_macs(LMA(64, rngs=nnx.Rngs(0)), shapes(1, 7, 9, 64)) == 3 * 64 * 16
    assert lma_torch.flops.count_macs(lma_torch.LMA(64), torch.ones(1, 64, 7, 9)) == 3 * 64 * 16


def test_a_difference_is_a_problem():
    result = flops.Count("resnet18", (224, 224), 1, {"a": 1}, {"a": 1, "b": 2}, {"a": 5}, 5, 6)
    differences = result.problems
    assert len(differences) == 3
    assert "layer 'b' has 0 MACs in JAX, 2 in PyTorch" in differences[0]
    assert "add up to 5" in differences[1]
    assert "published are 1,822,177,768" in differences[2]


@pytest.mark.process
def test_the_command_prints_tables_and_writes_files(tmp_path):
    files = f"--json={tmp_path / 'macs.json'}", f"--csv={tmp_path / 'macs.csv'}"
    output = run("convert.flops", "--model=resnet18_[el][cm]a", "--input-size=64x96", "--by-layer", *files)
    assert "one image, 64 x 96" in output
    with (tmp_path / "macs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"resnet18_eca", "resnet18_lma"}
    assert all(row["jax"] == row["torch"] for row in rows)
    written = json.loads((tmp_path / "macs.json").read_text())
    for model in written["models"]:
        assert model["input_size"] == [64, 96]
        assert f"{model['table1']:,}" in output
        assert sum(layer["table1"] for layer in model["layers"]) == model["table1"]
        assert sum(layer["jax"] for layer in model["layers"]) == model["jax"] == model["torch"]
    assert {"layer1.0.attention.pool_h ", "layer1.0.attention.conv_h "} <= set(re.findall(r"\S*attention\S* ", output))


def test_one_framework_is_counted_alone():
    result = flops.count("resnet18", torch_model=torch_shapes("resnet18"))
    assert result.jax is None
    assert result.summary["jax"] is None
    assert result.problems == []
    result = flops.count("resnet18", jax_model=jax_shapes("resnet18"))
    assert result.table1 is None
    assert result.problems == []
    assert sum(layer["jax"] for layer in result.layers) == BACKBONES_AND_LMA["resnet18"].products


def test_mistakes_are_reported():
    with pytest.raises(UserError, match="no model is called 'resnet51', did you mean 'resnet50'"):
        cli.models_named("resnet51")
    for size in ("0", "-3", "224x", "224x0", "axb", ""):
        with pytest.raises(UserError, match="a number of pixels or <height>x<width>"):
            flag_values.parse_size(size)
    assert flag_values.parse_size("64x96") == (64, 96)
    assert cli.models_named("resnet18*_lma") == ["resnet18_lma"]


@pytest.mark.process
def test_a_file_that_cannot_be_written_is_reported_in_one_line(tmp_path):
    path = tmp_path / "file/macs.csv"
    path.parent.touch()
    line = fail("convert.flops", "--framework=torch", "--model=resnet18", f"--csv={path}")
    assert f"cannot write {path}: " in line
