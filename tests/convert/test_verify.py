"""The proof itself: it covers every layer, finds the first that differs, and is not fooled."""

import numpy as np
import pytest
import torch

import convert
from convert.comparison import compare, report
from helpers.marks import all_but_slow
from helpers.shapes import jax_shapes, torch_shapes
from helpers.weights import golden_weights
from lma_jax import list_models

IMAGES = np.random.default_rng(0).normal(size=(2, 33, 40, 3))


def twins(name):
    weights = golden_weights(torch_shapes(name, num_classes=5))
    torch_model = torch_shapes(name, num_classes=5)
    torch_model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return convert.to_jax(weights, jax_shapes(name, num_classes=5)), torch_model


@pytest.fixture(scope="module", params=all_but_slow(["resnet18_lma"], ["resnet18_lma", "mobilenetv2_lma"]))
def pair(request):
    return twins(request.param)


def test_every_layer_is_compared_in_the_order_of_computation(pair):
    jax_model, torch_model = pair
    before = convert.to_torch(jax_model)
    differences = compare(jax_model, torch_model, IMAGES)
    after = convert.to_torch(jax_model)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert all(row.passed for row in differences)
    layers = [row.layer for row in differences if row.dtype == "float64"]
    assert layers[-1] == "logits"
    # All that has weights is there. Those of LMA lie in convolutions, which are not called.
    weighted = {key.rpartition(".")[0] for key in torch_model.state_dict()}
    lma = {name.rpartition(".")[0] for name in weighted if name.endswith("conv_h")}
    assert {name for name in weighted if not name.endswith(("conv_h", "conv_w"))} | lma <= set(layers)
    text = list(report(differences, by_layer=True))
    assert len(text) == len(differences) + 3
    assert f"float64  {len(layers) - 1} of {len(layers) - 1} layers are equal" in text


@pytest.mark.parametrize("damage", ["shifted", "nan"])
def test_the_first_layer_that_differs_is_named(pair, damage):
    jax_model, torch_model = pair
    name, module = [item for item in torch_model.named_modules() if isinstance(item[1], torch.nn.BatchNorm2d)][7]
    original = module.bias.detach().clone()
    with torch.no_grad():
        module.bias[0] = torch.nan if damage == "nan" else original[0] + 0.1
    try:
        differences = compare(jax_model, torch_model, IMAGES)
    finally:
        module.bias.data = original
    for dtype in ("float64", "float32"):
        rows = [row for row in differences if row.dtype == dtype]
        assert next(row for row in rows if not row.passed).layer == name
    assert sum(f"the first that differs is {name}" in line for line in report(differences, by_layer=False)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models("resnet18_*") if name != "resnet18_lma"])
def test_every_attention_module_is_proved_layer_by_layer(name):
    differences = compare(*twins(name), IMAGES)
    assert all(row.passed for row in differences if row.dtype == "float64")
    layers = {row.layer for row in differences}
    assert "layer1.1.attention" in layers or "layer1.2" in layers
