"""Networks under the transformations of their framework: stacked by vmap, traced by torch.jit and torch.fx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.func import functional_call, stack_module_state, vmap

import lma_jax
import lma_torch
from lma_torch.attention import ATTENTIONS
from lma_torch.fold import fold_batch_norm
from tests.helpers.shapes import narrow_options

LAYERS = ["resnet18", *(f"resnet18_{attention}" for attention in ATTENTIONS)]
IMAGES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
# Modules whose formulas ask for the number of pixels, which torch.jit.trace warns of.
UNTRACEABLE = ("srm", "sa", "sge", "mca", "simam")


def built(name: str) -> torch.nn.Module:
    return lma_torch.create_model(name, num_classes=3, **narrow_options(name)).eval()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("records", [True, False])
def test_layers_of_pytorch_can_be_stacked(channels, memory_format, records):
    layers = [lma_torch.LMA(channels) for _ in range(3)]
    x = torch.randn(2, channels, 6, 5).to(memory_format=memory_format)
    with torch.set_grad_enabled(records):
        params, buffers = stack_module_state(layers)
        ensemble = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(params, buffers)
        torch.testing.assert_close(ensemble, torch.stack([layer(x) for layer in layers]))
        for axis in (0, 1):
            maps = torch.stack([x, -x, x + 1], axis)
            expected = torch.stack([layers[0](part) for part in maps.unbind(axis)], axis)
            torch.testing.assert_close(vmap(layers[0], axis, axis)(maps), expected)


def test_layers_of_jax_can_be_stacked():
    layers = [lma_jax.LMA(16, rngs=nnx.Rngs(seed)) for seed in range(2)]
    graphdef, _ = nnx.split(layers[0])
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[nnx.split(layer)[1] for layer in layers])
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 16))
    ensemble = jax.jit(jax.vmap(lambda state: nnx.merge(graphdef, state)(x)))(states)
    np.testing.assert_allclose(ensemble, jnp.stack([nnx.jit(layer)(x) for layer in layers]), atol=1e-6)
    maps = jnp.stack([x, -x])
    np.testing.assert_allclose(jax.jit(jax.vmap(layers[0]))(maps), nnx.jit(layers[0])(maps), atol=1e-6)


@pytest.mark.parametrize("name", [*LAYERS, "resnet50_lma", "mobilenetv2_lma"])
def test_networks_of_pytorch_can_be_stacked_and_traced(name):
    model, other = built(name), built(name)
    with torch.no_grad():
        expected = model(IMAGES)
        params, buffers = stack_module_state([model, other])
        ensemble = vmap(lambda p, b: functional_call(model, (p, b), (IMAGES,)))(params, buffers)
        assert_close(ensemble, torch.stack([expected, other(IMAGES)]))
        for traced in (torch.fx.symbolic_trace(model), torch.fx.symbolic_trace(fold_batch_norm(model))):
            assert_close(traced(IMAGES), expected)
    called = {node.target for node in torch.fx.symbolic_trace(model).graph.nodes if node.op == "call_module"}
    assert {"features.1.conv.0.0"} <= called if name.startswith("mobile") else {"layer1.0.conv2", "fc"} <= called
    torch.fx.symbolic_trace(model.train())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in LAYERS if not name.endswith(UNTRACEABLE)])
def test_a_trace_of_torch_jit_passes_its_check_and_holds_for_every_size(name):
    model = built(name)
    traced = torch.jit.trace(model, IMAGES[:1, :, :32, :32])
    with torch.no_grad():
        assert_close(traced(IMAGES), model(IMAGES))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated:DeprecationWarning")
def test_a_trace_of_one_layer_passes_its_check():
    layer, x = lma_torch.LMA(64), torch.randn(2, 64, 6, 5)
    for given in (x, x.to(memory_format=torch.channels_last)):
        traced = torch.jit.trace(layer, given)
        torch.testing.assert_close(traced(given[:1, :, :3]), layer(given[:1, :, :3]))
