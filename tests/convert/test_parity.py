"""The verification: it compares every layer, lists the others, and finds the first layer that differs."""

import numpy as np
import pytest
import torch

import convert
from convert.parity import Verification, verify
from lma_jax.attention import ATTENTIONS
from tests.helpers.pairs import golden_pair, register_resnet10
from tests.helpers.shapes import narrow_options

pytestmark = pytest.mark.deep

IMAGES = np.random.default_rng(0).normal(size=(2, 33, 40, 3))


@pytest.fixture(scope="module", params=["resnet18_lma", "mobilenetv2_lma"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(name):
    return golden_pair(name, num_classes=5, **narrow_options(name))


@pytest.fixture(scope="module")
def verification(pair) -> Verification:
    jax_model, torch_model = pair
    return verify(jax_model, torch_model, IMAGES)


def weighted_layers(model: torch.nn.Module) -> set[str]:
    return {key.rpartition(".")[0] for key in model.state_dict()}


def test_every_layer_is_compared_in_the_order_of_computation(pair, verification):
    _, torch_model = pair
    assert verification.passed
    layers = [row.layer for row in verification.of("float64")]
    assert layers == [row.layer for row in verification.of("float32")]
    assert layers[-1] == "logits"
    # All that has weights is there. Those of LMA lie in convolutions, which are not called.
    weighted = weighted_layers(torch_model)
    lma = {name.rpartition(".")[0] for name in weighted if name.endswith("conv_h")}
    assert {name for name in weighted if not name.endswith(("conv_h", "conv_w"))} | lma <= set(layers)
    text = list(verification.report(by_layer=True))
    assert sum(line.endswith("  passed") for line in text) == len(verification.differences)
    assert f"float64  {len(layers) - 1} of {len(layers) - 1} layers passed" in text


def test_layers_that_are_not_verified_are_listed(pair, verification):
    _, torch_model = pair
    compared = {row.layer for row in verification.differences}
    assert not compared & set(verification.not_verified)
    assert weighted_layers(torch_model) <= compared | set(verification.not_verified)
    leaves = {name for name, module in torch_model.named_modules() if not list(module.children())}
    assert leaves <= compared | set(verification.not_verified)
    kernels = [name for name in verification.not_verified if name.endswith((".conv_h", ".conv_w"))]
    assert len(kernels) == 2 * sum(module.__class__.__name__ == "LMA" for module in torch_model.modules())
    assert verification.summary()["not_verified"] == verification.not_verified
    for by_layer, shown in (
        (True, verification.not_verified),
        (False, ["avgpool (1)", f"conv_h ({len(kernels) // 2})"]),
    ):
        text = " ".join(" ".join(verification.report(by_layer=by_layer)).split())
        listed = text.partition("not verified: ")[2]
        assert all(name in listed for name in shown)


def test_both_models_keep_their_weights(name, pair, verification):
    jax_model, torch_model = pair
    before = golden_pair(name, num_classes=5, **narrow_options(name))[1].state_dict()
    for after in (convert.to_torch(jax_model), torch_model.state_dict()):
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


@pytest.mark.parametrize("damage", ["shifted", "nan"])
def test_the_first_layer_that_fails_is_named(pair, damage):
    jax_model, torch_model = pair
    name, module = [item for item in torch_model.named_modules() if isinstance(item[1], torch.nn.BatchNorm2d)][7]
    original = module.bias.detach().clone()
    with torch.no_grad():
        module.bias[0] = torch.nan if damage == "nan" else original[0] + 0.1
    try:
        verification = verify(jax_model, torch_model, IMAGES)
    finally:
        module.bias.data = original
    assert not verification.passed
    for dtype in ("float64", "float32"):
        assert next(row for row in verification.of(dtype) if not row.passed).layer == name
        summary = verification.summary()[dtype]
        assert summary["passed"] < summary["layers"]
    assert sum(f"the first that failed is {name}" in line for line in verification.report(by_layer=False)) == 2


@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name != "lma"])
def test_every_attention_module_is_verified_layer_by_layer(attention, monkeypatch):
    register_resnet10(monkeypatch)
    verification = verify(*golden_pair(f"resnet10_{attention}", num_classes=5), IMAGES)
    assert all(row.passed for row in verification.of("float64"))
    layers = {row.layer for row in verification.differences}
    assert {f"layer{stage}.0.attention" for stage in (1, 2, 3, 4)} <= layers or "layer1.1" in layers
    # The groups of SA have an axis of their own in JAX, so that this output is not verified.
    assert ("layer1.0.attention.norm" in verification.not_verified) == (attention == "sa")
