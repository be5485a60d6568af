"""The convolution of the backbones against PyTorch's, in all its forms: one pixel, 1x1 kernels, depthwise."""

import itertools

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import convert
from lma_jax import layers as jax_layers
from lma_torch import layers as torch_layers
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc

FULL = [dict(kernel_size=k, **more) for k in (1, 3, 7) for more in (dict(), dict(stride=2), dict(groups=4))]
DEPTHWISE = [dict(kernel_size=k, out_channels=4, groups=4, stride=s) for k in (1, 3) for s in (1, 2)]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        *itertools.product(FULL, [(1, 1), (1, 2), (2, 1), (2, 2)]),
        *itertools.product(DEPTHWISE, [(1, 1), (1, 2), (5, 4)]),
    ],
    ids=str,
)
def test_maps_are_convolved_as_in_pytorch(x64, options, size):
    options = dict(in_channels=4, out_channels=8) | options
    layer = jax_layers.conv(**options, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    twin = torch_layers.conv(**options, dtype=torch.float64)
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


def test_a_depthwise_convolution_of_bfloat16_is_summed_in_float32():
    layer = jax_layers.conv(4, 4, 3, groups=4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.full_like(layer.kernel[...], 1 / 256)
    y = layer(jnp.ones((1, 3, 3, 4)).at[:, 0, 0].set(256))
    assert y.dtype == jnp.bfloat16
    # Summed in bfloat16, each 1 / 256 after the first term would be lost.
    assert y[0, 1, 1].tolist() == [1 + 8 / 256] * 4


@pytest.mark.parametrize("options", [dict(kernel_size=3, groups=4), dict(kernel_size=1)], ids=str)
def test_a_convolution_stays_one_on_other_platforms(options):
    graphdef, state = nnx.split(jax_layers.conv(4, 4, **options, rngs=nnx.Rngs(0)))
    forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    has_convolution = {
        platform: "stablehlo.convolution" in forward.trace(state, x).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert has_convolution == {"cpu": False, "cuda": True, "tpu": True}
