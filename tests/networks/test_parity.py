"""lma_jax and lma_torch are the same function and train the same network: every backbone, plain and with LMA.

float64 decides: there, a difference above 1e-9 is semantic, not rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.extend.core import jaxpr_as_fun

import convert
import lma_jax
from lma_jax.definition import split
from tests.helpers.arrays import normal, relative_error, to_nhwc
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.weights import well_conditioned_weights

CLASSES = 11
# Neither square nor of one parity; the last map is 2 x 2, so that BatchNorm sees 8 values a channel there.
BATCH, HEIGHT, WIDTH = 2, 40, 33
STEPS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 5, 1e-3, 0.9, 1e-4
# The other depths are the same blocks.
FLOAT32 = ("resnet18_lma", "resnet50_lma", "mobilenetv2_lma")
SGD = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))


pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("compile_each_layer_once")]


def batch(step):
    """Images (NCHW) and labels as NumPy arrays."""
    return normal(BATCH, 3, HEIGHT, WIDTH, seed=step), (np.arange(BATCH) + 3 * step) % CLASSES


def jax_batch(step):
    """The same for JAX, channels last."""
    images, labels = batch(step)
    return to_nhwc(images), jnp.asarray(labels)


def twins(name, weights, dtype, **options):
    """The network in both frameworks; `convert.to_torch` carries the weights of one to the other."""
    jax_model = convert.to_jax(weights, jax_shapes(name, param_dtype=getattr(jnp, dtype), **options))
    torch_model = torch_shapes(name, dtype=getattr(torch, dtype), **options)
    torch_model.load_state_dict(convert.to_torch(jax_model), strict=True, assign=True)
    return jax_model, torch_model.requires_grad_(True)


def error_of_eval_logits(jax_model, torch_model, images):
    jax_model.eval()
    torch_model.eval()
    with torch.no_grad():
        return relative_error(jax_model(to_nhwc(images)), torch_model(torch.from_numpy(images)))


def torch_gradients(model, images, labels):
    """Logits, loss and gradients in training mode."""
    model.train()
    model.zero_grad()
    logits = model(torch.from_numpy(images))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    return logits, loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def staged(function, *arguments):
    """The function for arguments of these shapes, traced once; XLA compiles the layers within it, not the whole."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    tree: Any = jax.tree.structure(shapes)
    return lambda *arguments: tree.unflatten(jaxpr_as_fun(closed)(*jax.tree.leaves(arguments)))


def jax_train_step(definition):
    """A step of SGD: (params, batch_stats, optimizer states), images, labels -> the same, logits, loss, gradients."""

    def step(state, images, labels):
        params, batch_stats, momenta = state

        def loss_of(params):
            model = definition.bind(params, batch_stats)
            logits = model(images)
            _, _, updated = split(model)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, updated)

        (loss, (logits, updated)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        tree: Any
        leaves, tree = jax.tree.flatten(params)
        params, momenta = zip(*map(sgd_step, leaves, jax.tree.leaves(gradients), momenta))
        return (tree.unflatten(params), updated, momenta), logits, loss, gradients

    return step


@jax.jit
def sgd_step(parameter, gradient, state):
    """SGD works element by element, so every parameter may have its own optimizer."""
    update, state = SGD.update(gradient, state, parameter)
    return optax.apply_updates(parameter, update), state


def error_of_gradients(jax_model, expected):
    """Each gradient relative to its own size, or to 1e-4 of the largest: some are zero but for rounding."""
    actual = convert.to_torch(jax_model)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    return max(relative_error(actual[name], expected[name], scale=1e-4 * largest) for name in expected)


def error_of_state(jax_model, torch_model, kinds=("weight", "bias", "running_mean", "running_var")):
    actual, expected = convert.to_torch(jax_model), torch_model.state_dict()
    return max(relative_error(actual[key], expected[key]) for key in expected if key.endswith(kinds))


def errors(name):
    """The relative errors of one network, by quantity: in eval mode, then in float64 over five steps of training."""
    errors = {}
    options = dict(num_classes=CLASSES, **narrow_options(name))
    weights = well_conditioned_weights(torch_shapes(name, dtype=torch.float64, **options), batch(STEPS)[0])
    images = batch(0)[0]
    if name in FLOAT32:
        jax_model, torch_model = twins(name, weights, "float32", **options)
        errors["eval logits, float32"] = error_of_eval_logits(jax_model, torch_model, images.astype(np.float32))
    with jax.enable_x64(True):
        jax_model, torch_model = twins(name, weights, "float64", **options)
        errors["eval logits"] = error_of_eval_logits(jax_model, torch_model, images)
        optimizer = torch.optim.SGD(torch_model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        jax_model.train()
        network, params, batch_stats = split(jax_model)
        state = params, batch_stats, tuple(map(SGD.init, jax.tree.leaves(params)))
        step = staged(jax_train_step(network), state, *jax_batch(0))
        for number in range(STEPS):
            expected_logits, expected_loss, expected_gradients = torch_gradients(torch_model, *batch(number))
            state, logits, loss, gradients = step(state, *jax_batch(number))
            params, batch_stats, _ = state
            if number == 0:
                errors["logits"] = relative_error(logits, expected_logits)
                errors["loss"] = relative_error(loss, expected_loss)
                errors["gradients"] = error_of_gradients(network.bind(gradients, batch_stats), expected_gradients)
                errors["running statistics"] = error_of_state(
                    network.bind(params, batch_stats), torch_model, ("running_mean", "running_var")
                )
            optimizer.step()
        errors["weights after five steps"] = error_of_state(network.bind(params, batch_stats), torch_model)
    return errors


BACKBONES = [name for name in lma_jax.list_models() if "_" not in name]


@pytest.mark.parametrize("name", [name for backbone in BACKBONES for name in (backbone, f"{backbone}_lma")])
def test_the_frameworks_train_the_same_network(name):
    found = errors(name)
    allowed = {quantity: 1e-4 if "float32" in quantity else 1e-9 for quantity in found}
    assert {quantity: error for quantity, error in found.items() if not error <= allowed[quantity]} == {}
