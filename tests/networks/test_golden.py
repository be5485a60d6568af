"""Both frameworks reproduce what the paper's published code computes in float64 (tests/golden)."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import convert
import lma_jax
import lma_torch
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.shapes import backbone_options, jax_shapes, torch_shapes
from tests.helpers.weights import golden_weights

TOLERANCE = 1e-9
LABELS = np.array([1, 5])

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("x64", "compile_each_layer_once")]


def load(file: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a file, grouped by the part of their names before the first slash."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(Path(__file__).parent.parent / "golden" / file) as arrays:
        for key in arrays:
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = arrays[key]
    return groups


LAYERS = load("lma_layer.npz")
NETWORKS = {
    {"resnet18": "resnet18_lma", "mobilenet_v2": "mobilenetv2_lma"}[name]: arrays
    for name, arrays in load("networks.npz").items()
}


def torch_layer(layer, x, grad_output):
    x = torch.from_numpy(x).requires_grad_()
    output = layer(x)
    wrt = [x, layer.conv_h.weight, layer.conv_w.weight]
    return output, *torch.autograd.grad(output, wrt, torch.from_numpy(grad_output))


def jax_layer(source, x, grad_output):
    layer = lma_jax.LMA(source.channels, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(convert.to_jax(source.state_dict(), layer))
    output, pullback = jax.vjp(lambda weights, x: nnx.merge(graphdef, weights)(x), weights, to_nhwc(x))
    grad_weights, grad_input = pullback(to_nhwc(grad_output))
    kernels = convert.to_torch(nnx.merge(graphdef, grad_weights))
    return to_nchw(output), to_nchw(grad_input), kernels["conv_h.weight"], kernels["conv_w.weight"]


@pytest.mark.parametrize("results_of", [torch_layer, jax_layer])
@pytest.mark.parametrize("case", LAYERS)
def test_the_layer_and_its_gradients(case, results_of):
    channels, height, width = map(int, re.findall(r"\d+", case))
    layer = lma_torch.LMA(channels, dtype=torch.float64)
    layer.load_state_dict(golden_weights(layer), strict=True)
    shape = (2, channels, height, width)
    results = results_of(layer, normal(*shape), normal(*shape, seed=1))
    names = ("output", "grad_input", "grad_conv_h", "grad_conv_w")
    errors = {name: relative_error(result, LAYERS[case][name]) for name, result in zip(names, results, strict=True)}
    assert max(errors.values()) <= TOLERANCE, errors


def torch_network(name):
    """Evaluation logits, training loss, gradients and the state after the training step."""
    options = dict(num_classes=37, **backbone_options(name))
    model = torch_shapes(name, dtype=torch.float64, **options)
    model.load_state_dict(golden_weights(model), strict=True, assign=True)
    x = torch.from_numpy(normal(2, 3, 64, 96))
    with torch.no_grad():
        logits = model.eval()(x)
    loss = torch.nn.functional.cross_entropy(model.train().requires_grad_(True)(x), torch.from_numpy(LABELS))
    loss.backward()
    return logits, loss, {key: p.grad for key, p in model.named_parameters()}, model.state_dict()


def jax_network(name):
    """Evaluation logits, training loss, gradients and the state after the training step, named as in PyTorch."""
    options = dict(num_classes=37, **backbone_options(name))
    model = jax_shapes(name, param_dtype=jnp.float64, **options)
    convert.to_jax(golden_weights(torch_shapes(name, **options)), model)
    x = to_nhwc(normal(2, 3, 64, 96))
    model.eval()
    logits = model(x)
    model.train()

    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), jnp.asarray(LABELS)).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    state = convert.to_torch(model)
    nnx.update(model, gradients)
    return logits, loss, convert.to_torch(model), state


@pytest.mark.parametrize("results_of", [torch_network, jax_network])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks(name, results_of):
    logits, loss, gradients, state = results_of(name)
    errors = {}
    for key, expected in NETWORKS[name].items():
        kind, _, variable = key.partition("/")
        result = {"eval_logits": logits, "train_loss": loss}.get(kind)
        if result is None:
            result = {"grad": gradients, "running_var": state}[kind][variable]
        errors[key] = relative_error(result, expected)
    assert max(errors.values()) <= TOLERANCE, errors
