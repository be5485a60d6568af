"""The LMA layer, in both frameworks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.test_util import check_grads

import convert
import lma_jax
import lma_torch
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.weights import golden_weights

pytestmark = pytest.mark.usefixtures("compile_each_layer_once")

FRAMEWORKS = ["jax", "torch"]
SHAPES = [(2, 40, 5, 7), (2, 40, 1, 6), (2, 40, 6, 1), (2, 40, 1, 1), (1, 2, 4, 3), (3, 300, 2, 2), (0, 40, 5, 7)]


def create(framework, *args, **options):
    return lma_torch.LMA(*args, **options) if framework == "torch" else lma_jax.LMA(*args, rngs=nnx.Rngs(0), **options)


def twins(channels, **options):
    """The layer in both frameworks, with the same weights in float64 (it needs the fixture x64)."""
    torch_layer = lma_torch.LMA(channels, dtype=torch.float64, **options)
    torch_layer.load_state_dict(golden_weights(torch_layer))
    jax_layer = lma_jax.LMA(channels, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
    return convert.to_jax(torch_layer.state_dict(), jax_layer), torch_layer


def apply(layer, x):
    """Applies a layer of either framework to a NumPy array (N, C, H, W)."""
    if isinstance(layer, torch.nn.Module):
        return layer(torch.from_numpy(x)).detach().numpy()
    return to_nchw(layer(to_nhwc(x)))


def formula(x, kernel_h, kernel_w):
    """The layer as the specification defines it, value by value: x (N, C, H, W), kernels (K,)."""
    _, channels, height, width = x.shape
    half = len(kernel_h) // 2

    def gate(profile, kernel):  # (N, C, L)
        total = np.zeros_like(profile)
        for c in range(channels):
            for k, weight in enumerate(kernel):
                if 0 <= c + k - half < channels:
                    total[:, c] += weight * profile[:, c + k - half]
        return 1 / (1 + np.exp(-total))

    gate_h = gate(sum(x[:, :, :, j] for j in range(width)) / width, kernel_h)
    gate_w = gate(sum(x[:, :, i, :] for i in range(height)) / height, kernel_w)
    return x * gate_w[:, :, None, :] * gate_h[:, :, :, None]


@pytest.mark.parametrize("kernel_size_for", [lma_jax.kernel_size_for, lma_torch.kernel_size_for])
def test_the_kernel_size_grows_with_the_channels_as_specified(kernel_size_for):
    expected = [1] * 26 + [3] * (215 - 26) + [5] * (1722 - 215) + [7] * (4870 - 1722)
    assert [kernel_size_for(channels) for channels in range(1, 4871)] == expected
    assert [kernel_size_for(channels) for channels in (13_777, 13_778)] == [7, 9]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("channels", "kernel_size"), [(1, 1), (2, 1), (3, 1), (26, 1), (27, 3), (216, 5), (1723, 7)])
def test_the_layer_has_two_kernels_of_that_size(framework, channels, kernel_size):
    layer = create(framework, channels)
    state_dict = layer.state_dict() if framework == "torch" else convert.to_torch(layer)
    assert layer.kernel_size == kernel_size
    assert {name: tuple(value.shape) for name, value in state_dict.items()} == {
        "conv_h.weight": (1, 1, 1, kernel_size),
        "conv_w.weight": (1, 1, 1, kernel_size),
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", SHAPES)
def test_both_frameworks_compute_the_formula(shape):
    jax_layer, torch_layer = twins(shape[1])
    kernels = [weight.detach().numpy().ravel() for weight in (torch_layer.conv_h.weight, torch_layer.conv_w.weight)]
    x = normal(*shape)
    expected = formula(x, *kernels)
    assert relative_error(apply(torch_layer, x), expected) <= 1e-12
    assert relative_error(apply(jax_layer, x), expected) <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("channels", "kernel_size"), [(40, 7), (2, 7), (1, 3)])
def test_both_frameworks_compute_the_formula_with_another_kernel_size(channels, kernel_size):
    jax_layer, torch_layer = twins(channels, kernel_size=kernel_size)
    kernels = [weight.detach().numpy().ravel() for weight in (torch_layer.conv_h.weight, torch_layer.conv_w.weight)]
    assert len(kernels[0]) == kernel_size
    x = normal(2, channels, 3, 4)
    expected = formula(x, *kernels)
    assert relative_error(apply(torch_layer, x), expected) <= 1e-12
    assert relative_error(apply(jax_layer, x), expected) <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_zero_kernels_give_exactly_a_quarter_of_the_input(framework):
    layer = create(framework, 40)
    for conv in (layer.conv_h, layer.conv_w):
        if framework == "torch":
            torch.nn.init.zeros_(conv.weight)
        else:
            conv.kernel[...] = jnp.zeros_like(conv.kernel[...])
    x = normal(2, 40, 5, 7)
    np.testing.assert_array_equal(apply(layer, x), x / 4)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_output_has_the_dtype_of_the_input(framework, dtype, x64):
    layer = create(framework, 40)
    x = normal(2, 5, 7, 40)
    if framework == "torch":
        output = layer(torch.from_numpy(x).to(getattr(torch, dtype)).permute(0, 3, 1, 2))
        assert output.dtype == getattr(torch, dtype)
        output, expected = output.detach().double().permute(0, 2, 3, 1), layer(torch.from_numpy(x).permute(0, 3, 1, 2))
        expected = expected.permute(0, 2, 3, 1)
    else:
        output, expected = layer(jnp.asarray(x, dtype)), layer(jnp.asarray(x))
        assert output.dtype == dtype
        output = output.astype(jnp.float64)
    assert relative_error(output, expected) <= 8 * jnp.finfo(dtype).eps


def test_the_dtype_option_of_jax_sets_the_computation_and_the_output():
    layer = lma_jax.LMA(40, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(2, 5, 7, 40), jnp.float32)
    assert layer(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(layer(x), layer(x.astype(jnp.bfloat16)))
    assert layer.conv_h.kernel.dtype == layer.conv_w.kernel.dtype == jnp.float32


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_jax_takes_any_number_of_leading_dimensions(leading):
    layer = lma_jax.LMA(40, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(*leading, 5, 7, 40), jnp.float32)
    expected = layer(x.reshape(-1, 5, 7, 40)).reshape(x.shape)
    assert relative_error(layer(x), expected) <= 1e-6


@pytest.mark.parametrize("shape", [(2, 40, 5, 7), (2, 40, 1, 6), (1, 40, 6, 1)])
def test_torch_computes_the_same_in_channels_last_and_keeps_the_memory_format(shape):
    layer = lma_torch.LMA(40, dtype=torch.float64)
    x = torch.from_numpy(normal(*shape))
    output = layer(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    assert relative_error(output, layer(x)) <= 1e-14


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_torch_computes_the_same_without_gradients_and_leaves_its_input(memory_format):
    layer = lma_torch.LMA(40)
    x = torch.from_numpy(normal(2, 40, 5, 7)).float().to(memory_format=memory_format)
    given = x.clone()
    with torch.no_grad():
        output = layer(x)
    torch.testing.assert_close(output, layer(x), rtol=0, atol=0)
    torch.testing.assert_close(x, given, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("memory_format", "height", "dynamic"),
    [
        (torch.contiguous_format, 12, False),
        (torch.channels_last, 1, False),
        (torch.channels_last, 11, False),
        (torch.channels_last, 12, True),
    ],
)
def test_torch_computes_the_same_when_compiled(memory_format, height, dynamic):
    layer = lma_torch.LMA(40, dtype=torch.float64)
    torch._dynamo.reset()  # of what other tests compiled
    # This runs everything except the generation of code, which takes long.
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    x = torch.from_numpy(normal(2, 40, height, 5)).to(memory_format=memory_format).requires_grad_()
    inputs = [x, *layer.parameters()]
    output, expected = compiled(x), layer(x)
    assert relative_error(output, expected) < 1e-12
    gradients = (torch.autograd.grad(y.square().sum(), inputs) for y in (output, expected))
    for gradient, other in zip(*gradients):
        assert relative_error(gradient, other) < 1e-12


@pytest.mark.parametrize("order", [1, 2])
def test_jax_derivatives_are_those_of_finite_differences(x64, order):
    """Forward and backward, since the layer's derivative is custom."""
    layer, _ = twins(30, kernel_size=3)
    graphdef, state = nnx.split(layer)
    x = to_nhwc(normal(1, 30, 3, 2))
    check_grads(jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)), (state, x), order=order)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_torch_gradients_are_those_of_finite_differences(memory_format):
    layer = lma_torch.LMA(30, dtype=torch.float64)
    x = torch.from_numpy(normal(2, 30, 2, 3)).to(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *args: torch.func.functional_call(
            layer, dict(zip(("conv_h.weight", "conv_w.weight"), args[1:])), args[0]
        ),
        (x, layer.conv_h.weight, layer.conv_w.weight),
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 39, 5, 7), "float32"), ((2, 5, 7, 41), "float32"), ((40, 5), "float32"), ((2, 40, 5, 7), "int32")],
    ids=["fewer channels", "more channels", "rank 2", "integers"],
)
def test_a_wrong_input_is_refused_and_the_expected_named(framework, shape, dtype):
    layer = create(framework, 40)
    x = np.ones(shape, dtype)
    given: Any
    if framework == "torch":
        given, expected = torch.from_numpy(x), "(N, 40, H, W)"
    else:
        given, expected = jnp.asarray(np.moveaxis(x, 1, -1)), "(..., H, W, 40)"
    with pytest.raises(ValueError, match="floating-point") as error:
        layer(given)
    assert expected in str(error.value)
    assert str(tuple(given.shape)) in str(error.value)
    assert dtype in str(error.value)


def test_the_channel_axis_of_the_other_framework_is_refused():
    with pytest.raises(ValueError, match="channels last"):
        lma_jax.LMA(40, rngs=nnx.Rngs(0))(jnp.ones((2, 40, 5, 7)))
    with pytest.raises(ValueError, match="channels second"):
        lma_torch.LMA(40)(torch.ones(2, 5, 7, 40))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kernel_size", [0, 2, -1])
def test_a_kernel_size_that_is_not_odd_and_positive_is_refused(framework, kernel_size):
    with pytest.raises(ValueError, match=f"odd, positive kernel_size, got {kernel_size}"):
        create(framework, 40, kernel_size=kernel_size)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("channels", [0, -4])
def test_a_channel_count_below_one_is_refused(framework, channels):
    with pytest.raises(ValueError, match=f"channels={channels}"):
        create(framework, channels)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_default_kernels_are_uniform_within_one_over_the_square_root_of_their_size(framework):
    torch.manual_seed(0)
    layer = create(framework, 40, kernel_size=1401)
    kernels = [
        conv.weight.detach() if framework == "torch" else conv.kernel[...] for conv in (layer.conv_h, layer.conv_w)
    ]
    scaled = np.sort(np.concatenate([np.ravel(kernel) for kernel in kernels])) * np.sqrt(1401)
    assert np.abs(scaled).max() <= 1
    assert np.abs(scaled - np.linspace(-1, 1, scaled.size)).max() <= 0.1


def test_the_two_kernels_are_drawn_independently():
    layer = lma_jax.LMA(40, kernel_size=7, rngs=nnx.Rngs(0))
    assert not np.array_equal(layer.conv_h.kernel[...], layer.conv_w.kernel[...])


def test_torch_options_set_device_and_dtype_of_the_parameters():
    layer = lma_torch.LMA(40, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


def test_jax_param_dtype_sets_the_dtype_of_the_parameters():
    layer = lma_jax.LMA(40, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype(jnp.bfloat16)}


def test_the_torch_layer_is_an_attention_layer_of_timm():
    class Block(torch.nn.Module):  # timm calls attn_layer(channels), some models with device and dtype
        def __init__(self, attn_layer, **options):
            super().__init__()
            self.se = attn_layer(40, **options)

        def forward(self, x):
            return self.se(x)

    x = torch.ones(2, 40, 5, 7)
    assert Block(lma_torch.LMA)(x).shape == x.shape
    assert Block(lma_torch.LMA, device="cpu", dtype=torch.float64)(x.double()).dtype == torch.float64


@pytest.mark.parametrize("make", [partial(lma_jax.LMA, rngs=nnx.Rngs(0)), lma_torch.LMA], ids=["jax", "torch"])
def test_sizes_are_whole_numbers(make):
    for channels in (64.5, 64.0, True, "64", None, [64]):
        with pytest.raises(ValueError, match="whole number of at least 1 is needed, got channels="):
            make(channels)
    for kernel_size in (3.0, True, "3"):
        with pytest.raises(ValueError, match="odd, positive kernel_size, got"):
            make(8, kernel_size=kernel_size)
    assert make(np.int64(64)).kernel_size == 3
