"""lma_jax and lma_torch are the same function and train the same network: every host, plain and with LMA.

float64 is the judge: there, a difference above 1e-9 is an error of meaning, not of rounding.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import golden_weights, host_options, jax_shapes, normal, relative_error, to_nhwc, torch_shapes
from flax import nnx

import convert
import lma_jax

CLASSES = 11
# Neither square nor of one parity; the last map is 2 x 2, so that BatchNorm sees 8 values a channel there.
BATCH, HEIGHT, WIDTH = 2, 48, 33
STEPS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 5, 1e-3, 0.9, 1e-4
SGD = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))


pytestmark = pytest.mark.usefixtures("compile_each_layer_once")


def batch(step):
    """Images (NCHW) and labels as NumPy arrays."""
    return normal(BATCH, 3, HEIGHT, WIDTH, seed=step), (np.arange(BATCH) + 3 * step) % CLASSES


def well_conditioned_weights(model):
    """Weights that do not amplify rounding, however deep the network: most units are active and the running
    statistics are those of some batch."""
    weights = golden_weights(model)
    for key in weights:
        if key.replace("bias", "running_var") in weights and key.endswith("bias"):
            weights[key] += 1
    model.load_state_dict(weights, assign=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.from_numpy(batch(STEPS)[0]))
    return model.state_dict()


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


def jax_gradients(model, images, labels):
    """Logits, loss and gradients in training mode."""

    def loss_of(model):
        logits = model(to_nhwc(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean(), logits

    model.train()
    (loss, logits), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    return logits, loss, gradients


@jax.jit
def sgd_step(parameter, gradient, state):
    """SGD works element by element, so every parameter may have its own optimizer."""
    update, state = SGD.update(gradient, state, parameter)
    return optax.apply_updates(parameter, update), state


def error_of_gradients(jax_model, gradients, expected):
    """Each gradient relative to its own size, or to 1e-4 of the largest: some are zero but for rounding."""
    model = nnx.clone(jax_model)
    nnx.update(model, gradients)
    actual = convert.to_torch(model)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    return max(relative_error(actual[name], expected[name], scale=1e-4 * largest) for name in expected)


def error_of_state(jax_model, torch_model, kinds=("weight", "bias", "running_mean", "running_var")):
    actual, expected = convert.to_torch(jax_model), torch_model.state_dict()
    return max(relative_error(actual[key], expected[key]) for key in expected if key.endswith(kinds))


@cache
def errors(name):
    """The relative errors of one network, by quantity: in eval mode, then in float64 over five steps of training."""
    errors = {}
    options = dict(num_classes=CLASSES, **host_options(name))
    weights = well_conditioned_weights(torch_shapes(name, dtype=torch.float64, **options))
    images = batch(0)[0]
    errors["eval logits, float32"] = error_of_eval_logits(
        *twins(name, weights, "float32", **options), images.astype(np.float32)
    )
    with jax.enable_x64(True):
        jax_model, torch_model = twins(name, weights, "float64", **options)
        errors["eval logits"] = error_of_eval_logits(jax_model, torch_model, images)
        optimizer = torch.optim.SGD(torch_model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        parameters, tree = jax.tree.flatten(nnx.state(jax_model, nnx.Param))
        states = [SGD.init(parameter) for parameter in parameters]
        for step in range(STEPS):
            expected_logits, expected_loss, expected_gradients = torch_gradients(torch_model, *batch(step))
            logits, loss, gradients = jax_gradients(jax_model, *batch(step))
            if step == 0:
                errors["logits"] = relative_error(logits, expected_logits)
                errors["loss"] = relative_error(loss, expected_loss)
                errors["gradients"] = error_of_gradients(jax_model, gradients, expected_gradients)
                errors["running statistics"] = error_of_state(jax_model, torch_model, ("running_mean", "running_var"))
            optimizer.step()
            parameters, states = zip(*map(sgd_step, parameters, jax.tree.leaves(gradients), states))
            nnx.update(jax_model, tree.unflatten(parameters))
        errors["weights after five steps"] = error_of_state(jax_model, torch_model)
    return errors


TOLERANCES = {
    "eval logits, float32": 1e-4,
    "eval logits": 1e-9,
    "logits": 1e-9,
    "loss": 1e-9,
    "gradients": 1e-9,
    "running statistics": 1e-9,
    "weights after five steps": 1e-9,
}


@pytest.mark.parametrize("quantity", TOLERANCES)
@pytest.mark.parametrize("name", lma_jax.list_models())
def test_the_frameworks_agree(name, quantity):
    assert errors(name)[quantity] <= TOLERANCES[quantity]
