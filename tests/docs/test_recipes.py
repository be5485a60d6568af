"""The recipes of docs/recipes.md run as they are written, and do what they say."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import lma_jax.registry
import lma_torch.registry
from convert.export import export
from convert.export.momentum import export_momentum
from convert.export.verified import verified_pair
from lma_jax.checkpoint.format import Checkpoint, Metadata, to_arrays
from lma_jax.definition import split
from tests.helpers.commands import ROOT
from tests.helpers.pairs import register_resnet10
from tests.helpers.published import BACKBONES_AND_LMA

pytestmark = pytest.mark.deep

HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
TITLES = HEADING.findall((ROOT / "docs/recipes.md").read_text())


def recipe(title: str) -> dict:
    """What the names in the code of a section are bound to after it has run."""
    _, *parts = HEADING.split((ROOT / "docs/recipes.md").read_text())
    section = dict(zip(parts[::2], parts[1::2]))[title]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {"__name__": "recipe"}
    exec(compile(code, "docs/recipes.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network in every format, in the current folder, with its metadata and the logits of black images."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        register_resnet10(patch)
        patch.chdir(folder)
        jax_model = nnx.jit(lambda: lma_jax.create_model("resnet10_lma", num_classes=5, rngs=nnx.Rngs(0)))()
        _, params, batch_stats = split(jax_model)
        tree = {"params": params, "batch_stats": batch_stats, "opt_state": [{"trace": params}]}
        preprocessing = dict(image_size=33, resize_size=40, mean=[0.5] * 3, std=[0.2] * 3)
        metadata = Metadata("resnet10_lma", 5, tuple("abcde"), config=preprocessing, metrics={"val_top1": 90.0})
        checkpoint = Checkpoint(7, to_arrays(tree), metadata)
        pair = verified_pair(checkpoint, source="runs/r10")
        for suffix in ("pth", "pt2", "onnx", "stablehlo"):
            export(pair, folder / f"network.{suffix}", fold=suffix == "onnx")
        export_momentum(checkpoint, folder / "momentum.pth")
        model = lma_torch.create_model("resnet10_lma", num_classes=5).eval()
        model.load_state_dict(convert.to_torch(jax_model))
        described = dict(model="resnet10_lma", num_classes=5, class_names=[*"abcde"], metrics={"val_top1": 90.0})
        logits = model(torch.zeros(3, 3, 33, 33)).detach().numpy()
        yield described | {"preprocessing": preprocessing}, logits, model


@pytest.mark.parametrize("title", ["An exported program in PyTorch", "ONNX", "A serialised JAX function"])
def test_an_exported_program_computes_the_network_and_describes_itself(exported, title):
    described, expected, _ = exported
    names = recipe(title)
    assert names["metadata"].items() >= described.items()
    assert names["metadata"]["checkpoint"] == "runs/r10"
    assert names["metadata"]["step"] == 7
    verified = names["metadata"]["verified"]
    for dtype, allowed in (("float64", 1e-9), ("float32", 1e-4)):
        assert verified[dtype]["passed"] == verified[dtype]["layers"] == 41
        assert 0 < verified[dtype]["largest_relative"] < allowed
    assert {"maxpool", "layer1.0.attention.conv_h", "layer4.0.attention.conv_w"} <= set(verified["not_verified"])
    assert names["metadata"]["program"]["relative"] < 1e-5
    np.testing.assert_allclose(np.asarray(names["logits"]), expected, atol=1e-5 * np.abs(expected).max())


def test_momentum_continues_in_pytorch(exported):
    _, _, model = exported
    names = recipe("A run that continues in PyTorch")
    momentum = convert.get_momentum(names["optimizer"], names["model"])
    assert momentum.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(momentum[name], weight) for name, weight in model.named_parameters())


def test_lma_works_within_a_linen_module():
    names = recipe("LMA in a Flax Linen module")
    block, variables = names["block"], names["variables"]
    images = jax.random.normal(jax.random.key(1), (2, 8, 9, 3))

    def by_hand(variables):
        attention = lma_jax.LMA(64, rngs=nnx.Rngs(0))
        for name in ("conv_h", "conv_w"):
            getattr(attention, name).kernel.set_value(variables["params"]["attention"][name]["kernel"])
        convolved = jax.lax.conv_general_dilated(
            images, variables["params"]["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nnx.relu(attention(convolved + variables["params"]["Conv_0"]["bias"]))

    np.testing.assert_allclose(block.apply(variables, images), by_hand(variables), atol=1e-5)
    gradients, expected = (
        jax.grad(lambda variables, f=f: jnp.square(f(variables)).sum())({"params": variables["params"]})
        for f in (lambda given: block.apply({**variables, **given}, images), by_hand)
    )
    assert gradients["params"]["attention"]["conv_h"]["kernel"].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2), gradients, expected)


def test_timm_loads_the_weights():
    pytest.importorskip("timm", exc_type=ImportError)
    names = recipe("Weights for timm and torchvision")
    expected = convert.to_torch(names["jax_model"], names="timm")
    assert all(torch.equal(value, expected[key]) for key, value in names["model"].state_dict().items())


def test_plain_ptflops_counts_as_table_1():
    pytest.importorskip("ptflops")
    names = recipe("Counting with ptflops")
    assert (names["parameters"], names["macs"]) == BACKBONES_AND_LMA["resnet18_lma"][:2]


def test_pytorch_grad_cam_draws_the_same_maps():
    pytest.importorskip("pytorch_grad_cam", exc_type=ImportError)
    names = recipe("Grad-CAM++ in PyTorch")
    jax_model = nnx.eval_shape(lambda: lma_jax.create_model("resnet18_lma", rngs=nnx.Rngs(0)))
    convert.to_jax(names["model"].state_dict(), jax_model)
    maps = lma_jax.grad_cam_plus_plus(jax_model, names["images"].permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(maps, names["maps"], atol=1e-4)


def test_a_folder_of_the_hub_carries_a_network_to_jax(tmp_path, monkeypatch):
    register_resnet10(monkeypatch)
    for registry in (lma_jax.registry, lma_torch.registry):
        monkeypatch.setitem(registry.BACKBONES, "resnet18", registry.BACKBONES["resnet10"])
    monkeypatch.chdir(tmp_path)
    names = recipe("Hugging Face Hub")
    returned = convert.to_torch(names["model"])
    assert all(torch.equal(returned[name], value) for name, value in names["trained"].state_dict().items())
    assert names["finer"].num_classes == 20


def test_the_backbone_of_a_detector_moves_to_jax(tmp_path, monkeypatch):
    register_resnet10(monkeypatch)
    for registry in (lma_jax.registry, lma_torch.registry):
        monkeypatch.setitem(registry.BACKBONES, "resnet50", registry.BACKBONES["resnet10"])
    body: Any = lma_torch.create_model("resnet50_lma", features_only=True, out_indices=(1, 2, 3, 4))
    backbone = torch.nn.ModuleDict({"body": body, "fpn": lma_torch.FeaturePyramid(body.feature_info.channels())})
    detector = torch.nn.ModuleDict({"backbone": backbone, "rpn": torch.nn.Linear(2, 2)})
    (tmp_path / "runs/detection").mkdir(parents=True)
    torch.save(detector.state_dict(), tmp_path / "runs/detection/detector.pth")
    monkeypatch.chdir(tmp_path)
    returned = convert.to_torch(recipe("Detection")["backbone"])
    assert all(torch.equal(returned[name], value) for name, value in backbone.state_dict().items())


def test_every_recipe_is_tested():
    assert len(TITLES) == 11  # that of runs beside each other by tests/convert/test_compare.py
