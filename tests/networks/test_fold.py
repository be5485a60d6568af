"""Folded batch normalisation: the same function in both frameworks, with fewer layers."""

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import convert
import lma_jax
import lma_torch
from lma_jax.layers import BatchNorm
from tests.helpers.arrays import normal, relative_error, to_nhwc
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.weights import well_conditioned_weights

OPTIONS = dict(num_classes=5)
# Every kind of backbone, and attention modules that have a normalisation or sit before one. The number is that of the
# normalisations that stay.
LEFT = {
    "resnet18_lma": 0,
    "resnet50_cbam": 0,
    "mobilenetv2_lma": 0,
    "resnet18_bam": 0,
    "resnet18_simam": 8,
    "mobilenetv2_simam": 17,
}

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("x64", "compile_each_layer_once")]


@pytest.mark.parametrize("name", LEFT)
def test_a_folded_network_is_the_same_function_in_both_frameworks(name):
    options = {**OPTIONS, **narrow_options(name)}
    torch_model = torch_shapes(name, dtype=torch.float64, **options)
    weights = well_conditioned_weights(torch_model, normal(4, 3, 40, 33, seed=1))
    jax_model = convert.to_jax(weights, jax_shapes(name, param_dtype=jnp.float64, **options))
    x = normal(2, 3, 40, 33)
    with torch.no_grad():
        expected = torch_model.eval()(torch.from_numpy(x))
        folded = lma_torch.fold_batch_norm(torch_model)
        assert relative_error(folded(torch.from_numpy(x)), expected) < 1e-9
    jax_folded = lma_jax.fold_batch_norm(jax_model)
    assert relative_error(jax_folded(to_nhwc(x)), expected) < 1e-9
    kinds = torch.nn.BatchNorm2d, BatchNorm
    left = [path for path, module in folded.named_modules() if isinstance(module, kinds[0])]
    jax_left = [path for path, module in nnx.iter_modules(jax_folded) if isinstance(module, kinds[1])]
    if name != "resnet18_bam":  # it normalises a vector too
        assert sorted(left) == sorted(".".join(map(str, path)) for path in jax_left)
    assert len(left) == LEFT[name]
    for original in (torch_model.state_dict(), convert.to_torch(jax_model)):
        assert original.keys() == weights.keys()
        assert all(torch.equal(original[key], weights[key]) for key in weights if "num_batches" not in key)
