"""The convolution of the hosts against PyTorch's, where a map has shrunk to one pixel."""

import jax
import jax.numpy as jnp
import pytest
import torch
from conftest import normal, relative_error, to_nchw, to_nhwc
from flax import nnx

import convert
from lma_jax import layers as jax_layers
from lma_torch import layers as torch_layers


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("options", [dict(), dict(stride=2), dict(groups=4)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_small_maps_are_convolved_as_in_pytorch(x64, size, options, kernel_size):
    layer = jax_layers.conv(4, 8, kernel_size, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    twin = torch_layers.conv(4, 8, kernel_size, **options, dtype=torch.float64)
    twin.load_state_dict({"weight": convert.to_torch(nnx.Sequential(layer))["layers.0.weight"]})
    x = torch.from_numpy(normal(2, 4, *size)).requires_grad_()
    y = twin(x)
    y.square().sum().backward()

    def energy(layer, x):
        return jnp.square(layer(x)).sum()

    grad_layer, grad_x = nnx.grad(energy, argnums=(0, 1))(layer, to_nhwc(x.detach()))
    assert relative_error(to_nchw(layer(to_nhwc(x.detach()))), y) < 1e-12
    assert relative_error(to_nchw(grad_x), x.grad) < 1e-12
    (grad_kernel,) = jax.tree.leaves(grad_layer)
    assert relative_error(grad_kernel.transpose(3, 2, 0, 1), twin.weight.grad) < 1e-12
