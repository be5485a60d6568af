"""Observing the layers of a network."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import lma_jax
from lma_jax.intercept import intercept
from lma_jax.layers import BatchNorm


def block() -> lma_jax.BasicBlock:
    return lma_jax.BasicBlock(4, 8, stride=2, attention=lma_jax.LMA, rngs=nnx.Rngs(0))


def test_every_call_is_seen_with_its_path_and_module_and_the_model_left_as_it_is():
    model, x = block(), jnp.ones((1, 6, 6, 4))
    model.eval()
    before, seen = nnx.graphdef(model), {}

    def record(path, module, call, *args, **kwargs):
        output = call(*args, **kwargs)
        seen[path] = module, output
        return output

    y = intercept(model, record)(x)
    np.testing.assert_array_equal(y, model(x))
    paths = ["", "attention", "bn1", "bn2", "conv1", "conv2", "downsample", "downsample.0", "downsample.1"]
    assert sorted(seen) == paths
    assert isinstance(seen["downsample.1"][0], BatchNorm)
    np.testing.assert_array_equal(seen["conv1"][1], model.conv1(x))
    np.testing.assert_array_equal(seen[""][1], y)
    assert nnx.graphdef(model) == before


def test_an_output_can_be_replaced_and_the_module_is_then_not_run():
    model, x = block(), jnp.ones((1, 6, 6, 4))
    model.eval()
    called = []

    def replace(path, module, call, *args, **kwargs):
        called.append(path)
        return jnp.zeros((1, 3, 3, 8)) if path == "downsample" else call(*args, **kwargs)

    branch = model.bn2(model.conv2(nnx.relu(model.bn1(model.conv1(x)))))
    np.testing.assert_array_equal(intercept(model, replace)(x), nnx.relu(model.apply_attention(branch, "branch")))
    assert "downsample" in called
    assert "downsample.0" not in called
