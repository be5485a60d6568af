"""The attention modules of both frameworks against their formulas in NumPy, written from the specification alone."""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.weights import golden_weights

FRAMEWORKS = ["torch", "jax"]


# Parts of the formulas. x is (N, C, H, W), w holds the arrays of a state_dict by name, everything is float64.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def linear(v, w, name):
    """(N, in) -> (N, out)."""
    return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def along(values, axis, ndim):
    """A vector shaped so that it broadcasts along one axis."""
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])


def batch_norm(x, w, name, training):
    """Over axis 1, of an array with any number of axes."""
    others = tuple(a for a in range(x.ndim) if a != 1)
    mean = x.mean(axis=others) if training else w[f"{name}.running_mean"]
    var = x.var(axis=others) if training else w[f"{name}.running_var"]
    normalized = (x - along(mean, 1, x.ndim)) / np.sqrt(along(var, 1, x.ndim) + 1e-5)
    return normalized * along(w[f"{name}.weight"], 1, x.ndim) + along(w[f"{name}.bias"], 1, x.ndim)


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """Cross-correlation with zero padding: x (N, C, H, W), weight (O, C / groups, P, Q)."""
    out_channels, group_in, rows, columns = weight.shape
    group_out = out_channels // groups
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    height = (x.shape[2] - dilation * (rows - 1) - 1) // stride + 1
    width = (x.shape[3] - dilation * (columns - 1) - 1) // stride + 1
    y = np.zeros((x.shape[0], out_channels, height, width))
    for g in range(groups):
        inputs = slice(g * group_in, (g + 1) * group_in)
        outputs = slice(g * group_out, (g + 1) * group_out)
        for p in range(rows):
            for q in range(columns):
                i = slice(p * dilation, p * dilation + stride * (height - 1) + 1, stride)
                j = slice(q * dilation, q * dilation + stride * (width - 1) + 1, stride)
                y[:, outputs] += np.einsum("nchw,oc->nohw", x[:, inputs, i, j], weight[outputs, :, p, q])
    return y if bias is None else y + along(bias, 1, 4)


def convolution(x, w, name, **options):
    return conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)


def correlation(profile, kernel):
    """Cross-correlation of the rows of (N, L) with a kernel of odd size, zero padded on both sides."""
    half, length = len(kernel) // 2, profile.shape[1]
    padded = np.pad(profile, [(0, 0), (half, half)])
    return sum(weight * padded[:, k : k + length] for k, weight in enumerate(kernel))


def max_and_mean(x, axis):
    """The two pools over one axis, as two channels."""
    return np.stack([x.max(axis), x.mean(axis)], axis=1)


# The formulas: name(x, w, training) -> y.


def se(x, w, training):
    hidden = relu(linear(x.mean((2, 3)), w, "fc1"))
    return x * sigmoid(linear(hidden, w, "fc2"))[:, :, None, None]


def cbam(x, w, training):
    def f(v):
        return linear(relu(linear(v, w, "fc1")), w, "fc2")

    x = x * sigmoid(f(x.mean((2, 3))) + f(x.max((2, 3))))[:, :, None, None]
    z = convolution(max_and_mean(x, 1), w, "conv", padding=3)
    return x * sigmoid(batch_norm(z, w, "bn", training))


def bam(x, w, training):
    c = linear(x.mean((2, 3)), w, "fc1")
    c = linear(relu(batch_norm(c, w, "bn", training)), w, "fc2")
    s = relu(batch_norm(convolution(x, w, "conv1"), w, "bn1", training))
    s = relu(batch_norm(convolution(s, w, "conv2", dilation=4, padding=4), w, "bn2", training))
    s = relu(batch_norm(convolution(s, w, "conv3", dilation=4, padding=4), w, "bn3", training))
    s = convolution(s, w, "conv4")
    return x * (1 + sigmoid(c[:, :, None, None] * s))


def eca(x, w, training):
    t = int((math.log2(x.shape[1]) + 1) / 2)
    k = t if t % 2 == 1 else t + 1
    gate = sigmoid(correlation(x.mean((2, 3)), w["conv.weight"].reshape(k)))
    return x * gate[:, :, None, None]


def ta(x, w, training):
    def gate(image, axis):
        z = convolution(image, w, f"conv_{axis}", padding=3)
        return sigmoid(batch_norm(z, w, f"bn_{axis}", training))[:, 0]

    gate_h = gate(max_and_mean(x, 2), "h")[:, :, None, :]  # the image is (C, W)
    image_hc = max_and_mean(x, 3).transpose(0, 1, 3, 2)
    gate_w = gate(image_hc, "w").transpose(0, 2, 1)[:, :, :, None]
    gate_c = gate(max_and_mean(x, 1), "c")[:, None, :, :]
    return (x * gate_h + x * gate_w + x * gate_c) / 3


def gsop(x, w, training):
    n, channels, _, _ = x.shape
    d = 128
    z = convolution(relu(x), w, "reduce", stride=2 if channels == 256 else 1)
    z = relu(batch_norm(z, w, "bn", training)).reshape(n, d, -1)
    z = z - z.mean(2, keepdims=True)
    covariance = z @ z.transpose(0, 2, 1) / z.shape[2]
    rows = batch_norm(covariance, w, "row_bn", training)  # (N, row, column)
    hidden = convolution(rows[:, :, :, None], w, "row_conv", groups=d)
    return x * sigmoid(convolution(hidden, w, "expand"))


def gc(x, w, training):
    scores = np.exp(convolution(x, w, "mask"))  # (N, 1, H, W)
    context = (x * scores / scores.sum((2, 3), keepdims=True)).sum((2, 3))
    u = linear(context, w, "fc1")
    mean, var = u.mean(1, keepdims=True), u.var(1, keepdims=True)
    u = (u - mean) / np.sqrt(var + 1e-5) * w["norm.weight"] + w["norm.bias"]
    return x + linear(relu(u), w, "fc2")[:, :, None, None]


def sa(x, w, training):
    channels = x.shape[1]
    groups = max(g for g in range(1, 65) if channels % (2 * g) == 0)
    half = channels // (2 * groups)
    parts = []
    for g in range(groups):
        a = x[:, 2 * g * half : (2 * g + 1) * half]
        b = x[:, (2 * g + 1) * half : (2 * g + 2) * half]
        gate = along(w["weight_c"], 1, 4) * a.mean((2, 3), keepdims=True) + along(w["bias_c"], 1, 4)
        parts.append(a * sigmoid(gate))
        norm = (b - b.mean((2, 3), keepdims=True)) / np.sqrt(b.var((2, 3), keepdims=True) + 1e-5)
        norm = norm * along(w["norm.weight"], 1, 4) + along(w["norm.bias"], 1, 4)
        parts.append(b * sigmoid(along(w["weight_s"], 1, 4) * norm + along(w["bias_s"], 1, 4)))
    y = np.concatenate(parts, axis=1)
    # The shuffle takes the first channel of each of the two groups, then the second of each, and so on.
    return y[:, [group * channels // 2 + c for c in range(channels // 2) for group in range(2)]]


def ca(x, w, training):
    height = x.shape[2]
    u = np.concatenate([x.mean(3), x.mean(2)], axis=2)[:, :, :, None]  # (N, C, H + W, 1)
    u = batch_norm(convolution(u, w, "conv1"), w, "bn1", training)
    u = u * np.clip(u + 3, 0, 6) / 6
    gate_h = sigmoid(convolution(u[:, :, :height], w, "conv_h"))  # (N, C, H, 1)
    gate_w = sigmoid(convolution(u[:, :, height:], w, "conv_w")).transpose(0, 1, 3, 2)  # (N, C, 1, W)
    return x * gate_w * gate_h


def srm(x, w, training):
    mean = x.mean((2, 3))
    std = np.sqrt(x.var((2, 3), ddof=1) + 1e-5)
    z = w["weight"][:, 0] * mean + w["weight"][:, 1] * std
    return x * sigmoid(batch_norm(z, w, "bn", training))[:, :, None, None]


def sge(x, w, training):
    groups = len(w["weight"])
    y = np.zeros_like(x)
    for g, group in enumerate(np.split(np.arange(x.shape[1]), groups)):
        part = x[:, group]
        s = (part * part.mean((2, 3), keepdims=True)).sum(1, keepdims=True)
        std = s.std((2, 3), ddof=1, keepdims=True)
        t = (s - s.mean((2, 3), keepdims=True)) / (std + 1e-5)
        y[:, group] = part * sigmoid(w["weight"][g] * t + w["bias"][g])
    return y


def mca(x, w, training):
    t = round(abs((math.log2(x.shape[1]) - 1) / 1.5))  # LMA's kernel size
    kernel_sizes = {"c": max(1, t if t % 2 == 1 else t - 1), "h": 3, "w": 3}
    gates: Any = 0
    for axis, name in [(1, "c"), (2, "h"), (3, "w")]:
        others = tuple(a for a in (1, 2, 3) if a != axis)
        p = w[f"weight_{name}"]
        u = (0.5 + sigmoid(p[0])) * x.mean(others) + (0.5 + sigmoid(p[1])) * x.std(others, ddof=1)
        gate = sigmoid(correlation(u, w[f"conv_{name}.weight"].reshape(kernel_sizes[name])))
        gates = gates + np.expand_dims(gate, others)
    return x * gates / 3


def simam(x, w, training):
    d = (x - x.mean((2, 3), keepdims=True)) ** 2
    v = d.sum((2, 3), keepdims=True) / (x.shape[2] * x.shape[3] - 1)
    return x * sigmoid(d / (4 * (v + 1e-4)) + 0.5)


CHANNEL = {"SE": se, "ECA": eca, "SRM": srm, "GC": gc, "GSoP": gsop}
MIXED = {"CBAM": cbam, "BAM": bam, "TA": ta, "SA": sa, "CA": ca, "SGE": sge, "MCA": mca, "SimAM": simam}
FORMULAS = CHANNEL | MIXED

SHAPES = [(name, (2, 32, 7, 6)) for name in FORMULAS]
SHAPES += [("ECA", (2, 128, 3, 4)), ("MCA", (2, 216, 3, 4))]  # kernels of size 5
SHAPES += [("GSoP", (2, 256, 5, 4)), ("SA", (2, 128, 3, 4)), ("SA", (2, 256, 3, 4)), ("SA", (2, 192, 3, 4))]
SHAPES += [("SGE", (2, 128, 3, 4))]


def twins(name, channels, *, double):
    """A module in PyTorch and in JAX with the same golden weights; double needs the fixture x64."""
    home = "channel" if name in CHANNEL else "mixed"
    torch_class = getattr(importlib.import_module(f"lma_torch.attention.{home}"), name)
    torch_module = torch_class(channels, dtype=torch.float64 if double else torch.float32)
    torch_module.load_state_dict(golden_weights(torch_module))
    jax_class = getattr(importlib.import_module(f"lma_jax.attention.{home}"), name)
    dtype = jnp.float64 if double else jnp.float32
    jax_module = nnx.eval_shape(lambda: jax_class(channels, param_dtype=dtype, rngs=nnx.Rngs(0)))  # shapes only
    return torch_module, convert.to_jax(torch_module.state_dict(), jax_module)


def create(framework, name, channels):
    """A module of either framework in float32 with golden weights."""
    return twins(name, channels, double=False)[FRAMEWORKS.index(framework)]


@nnx.jit
def forward(module, x):
    return module(x)


@nnx.jit
def forward_and_backward(module, x):
    y, backward = jax.vjp(module, x)
    return y, backward(jnp.ones_like(y))[0]


def apply(module, x):
    """The output for a NumPy array (N, C, H, W)."""
    if isinstance(module, torch.nn.Module):
        return module(torch.from_numpy(x)).detach().numpy()
    return to_nchw(forward(module, to_nhwc(x)))


def apply_with_gradient(module, x):
    """The output for a NumPy array (N, C, H, W), and the gradient of its sum by the input."""
    if not isinstance(module, torch.nn.Module):
        return [to_nchw(a) for a in forward_and_backward(module, to_nhwc(x))]
    x = torch.from_numpy(x).requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach().numpy(), gradient.numpy()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_each_module_computes_its_formula(name, shape, training):
    x = normal(*shape)
    torch_module, jax_module = twins(name, shape[1], double=True)
    w = {key: value.numpy() for key, value in golden_weights(torch_module).items()}
    expected = FORMULAS[name](x, w, training)
    for module in (torch_module, jax_module):
        module.train() if training else module.eval()
        actual = apply(module, x)
        assert actual.dtype == np.float64
        assert relative_error(actual, expected) <= 1e-9, type(module)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 2, 3, 2)])
@pytest.mark.parametrize("name", FORMULAS)
def test_small_maps_and_few_channels_give_finite_outputs_and_gradients(name, shape, framework):
    module = create(framework, name, shape[1])
    module.eval()
    for x in (normal(*shape), np.zeros(shape)):  # a constant map has no standard deviation either
        y, gradient = apply_with_gradient(module, x.astype(np.float32))
        assert y.shape == gradient.shape == shape
        assert y.dtype == np.float32
        assert np.isfinite(y).all()
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shape", [(1, 4, 3, 2), (1, 4, 1, 1)])
@pytest.mark.parametrize("name", FORMULAS)
def test_one_image_in_training_mode_gives_finite_outputs_or_an_error_that_says_why(name, shape, framework):
    module = create(framework, name, shape[1])
    module.train()
    try:
        result = apply(module, normal(*shape).astype(np.float32))
    except ValueError as error:
        result = str(error)
    if isinstance(result, str):
        assert "more than 1 value" in result
    else:
        assert result.shape == shape
        assert np.isfinite(result).all()
