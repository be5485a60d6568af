"""lma_jax and lma_torch are the same function and train the same network: every host, plain and with LMA.

float64 is the judge: there, a difference above 1e-9 is an error of meaning, not of rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import (
    golden_weights,
    host_options,
    jax_shapes,
    largest_error,
    normal,
    relative_error,
    to_nhwc,
    torch_shapes,
)
from flax import nnx

import convert
import lma_jax
import lma_jax.layers

CLASSES = 11
# Neither square nor of one parity; the last map is 2 x 2, so that BatchNorm sees 8 values a channel there.
BATCH, HEIGHT, WIDTH = 2, 48, 33
STEPS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 5, 1e-3, 0.9, 1e-4
SGD = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))


@pytest.fixture(scope="module", autouse=True)
def _layers_compiled_once():
    """Compiles a layer once for a shape, for all networks together; whole networks would take minutes each."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in (nnx.Conv, lma_jax.layers.BatchNorm, lma_jax.layers.ReLU6, lma_jax.LMA):
            patch.setattr(layer, "__call__", nnx.jit(layer.__call__))
        yield


def twins(name, dtype):
    """The network in both frameworks, with the weights of the JAX one carried over by `convert.to_torch`."""
    options = dict(num_classes=CLASSES, **host_options(name))
    torch_model = torch_shapes(name, dtype=getattr(torch, dtype), **options)
    weights = golden_weights(torch_model)
    for key in weights:
        if key.endswith("running_var"):
            weights[key] *= 3  # or else the activations of a deep network explode in eval mode
    jax_model = jax_shapes(name, param_dtype=getattr(jnp, dtype), **options)
    convert.to_jax(weights, jax_model)
    torch_model.load_state_dict(convert.to_torch(jax_model), strict=True, assign=True)
    return jax_model, torch_model.requires_grad_(True)


def batch(step):
    """Images (NCHW) and labels as NumPy arrays."""
    return normal(BATCH, 3, HEIGHT, WIDTH, seed=step), (np.arange(BATCH) + 3 * step) % CLASSES


def eval_error(jax_model, torch_model):
    """The relative error of the logits in eval mode."""
    images, _ = batch(STEPS)
    images = torch.from_numpy(images).to(
        torch_model.state_dict()["fc.bias" if hasattr(torch_model, "fc") else "classifier.1.bias"].dtype
    )
    jax_model.eval()
    torch_model.eval()
    with torch.no_grad():
        error = relative_error(jax_model(to_nhwc(images)), torch_model(images))
    jax_model.train()
    torch_model.train()
    return error


def torch_gradients(model, images, labels):
    """Logits, loss and gradients in training mode."""
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

    (loss, logits), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    return logits, loss, gradients


@jax.jit
def sgd_step(parameter, gradient, state):
    """SGD works element by element, so every parameter may have its own optimizer."""
    update, state = SGD.update(gradient, state, parameter)
    return optax.apply_updates(parameter, update), state


import time


def lap(s):
    global t, w
    print(f"  {s}: cpu {time.process_time() - t:.2f} wall {time.time() - w:.2f}", flush=True)
    t = time.process_time()
    w = time.time()


@pytest.fixture(scope="module", params=lma_jax.list_models())
def errors(request):
    """The relative errors of one network in float64, by quantity: in eval mode, then over five steps of training."""
    global t, w
    t = time.process_time()
    w = time.time()
    T = t
    W = w
    errors = {}
    with jax.enable_x64(True):
        jax_model, torch_model = twins(request.param, "float64")
        lap("twins")
        errors["eval logits"] = eval_error(jax_model, torch_model)
        lap("eval")
        optimizer = torch.optim.SGD(torch_model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        parameters, treedef = jax.tree.flatten(nnx.state(jax_model, nnx.Param))
        states = [SGD.init(parameter) for parameter in parameters]
        for step in range(STEPS):
            logits, loss, gradients = torch_gradients(torch_model, *batch(step))
            lap("torch")
            jax_logits, jax_loss, jax_grads = jax_gradients(jax_model, *batch(step))
            jax.block_until_ready(jax_grads)
            lap("jax")
            if step == 0:
                errors["train logits"] = relative_error(jax_logits, logits)
                errors["loss"] = relative_error(jax_loss, loss)
                jax_gradients_ = nnx.clone(jax_model)
                nnx.update(jax_gradients_, jax_grads)
                actual = convert.to_torch(jax_gradients_)
                errors["gradients"] = max(relative_error(actual[k], gradients[k]) for k in gradients)
                sd = torch_model.state_dict()
                errors["running statistics"] = max(relative_error(actual[k], sd[k]) for k in sd if "running" in k)
                lap("compare")
            optimizer.step()
            lap("torch upd")
            parameters, states = zip(*map(sgd_step, parameters, jax.tree.leaves(jax_grads), states))
            nnx.update(jax_model, treedef.unflatten(parameters))
            jax.block_until_ready(parameters)
            lap("jax upd")
        actual = convert.to_torch(jax_model)
        sd = torch_model.state_dict()
        errors["weights after five steps"] = max(
            relative_error(actual[k], sd[k]) for k in sd if not k.endswith("tracked")
        )
        lap("compare")
    print(errors, loss.item(), time.process_time() - T, time.time() - W)
    return errors


def test_x(errors):
    pass
