"""Layers that behave as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import lma_jax.layers
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.weights import golden_weights


@pytest.fixture
def norms(x64):
    """BatchNorm in both frameworks, in float64 and with equal, uncommon values."""
    expected = torch.nn.BatchNorm2d(6, dtype=torch.float64)
    weights = golden_weights(expected)
    expected.load_state_dict(weights)
    holder = nnx.List([lma_jax.layers.BatchNorm(6, param_dtype=jnp.float64)])
    convert.to_jax({f"0.{key}": value for key, value in weights.items()}, holder)
    return holder[0], expected


def test_batch_norm_trains_as_torch_does(norms):
    norm, expected = norms
    x, weight = normal(3, 6, 4, 5) * 2 + 3, normal(3, 6, 4, 5, seed=1)
    leaf = torch.from_numpy(x).requires_grad_()
    output = expected(leaf)
    (output * torch.from_numpy(weight)).sum().backward()

    def loss_of(norm, x):
        y = norm(x)
        return (y * to_nhwc(weight)).sum(), y

    (_, y), (grads, grad_x) = nnx.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(norm, to_nhwc(x))
    assert relative_error(to_nchw(y), output) <= 1e-12
    assert relative_error(to_nchw(grad_x), leaf.grad) <= 1e-12
    assert relative_error(grads["scale"][...], expected.weight.grad) <= 1e-12
    assert relative_error(grads["bias"][...], expected.bias.grad) <= 1e-12
    assert relative_error(norm.mean[...], expected.running_mean) <= 1e-12
    assert relative_error(norm.var[...], expected.running_var) <= 1e-12


def test_batch_norm_evaluates_as_torch_does_and_changes_nothing(norms):
    norm, expected = norms
    norm.eval()
    expected.eval()
    x = normal(3, 6, 4, 5) * 2 + 3
    assert relative_error(to_nchw(norm(to_nhwc(x))), expected(torch.from_numpy(x))) <= 1e-12
    np.testing.assert_array_equal(norm.mean[...], expected.running_mean)
    np.testing.assert_array_equal(norm.var[...], expected.running_var)


def test_batch_norm_is_exact_far_from_zero():
    norm = lma_jax.layers.BatchNorm(3, momentum=0.0)
    x = (1000 + 0.03 * normal(8, 4, 4, 3)).astype(np.float32)
    y = norm(jnp.asarray(x))
    exact = x.astype(np.float64)
    assert relative_error(norm.var[...], exact.var((0, 1, 2), ddof=1)) <= 1e-3
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    assert relative_error(y, expected) <= 1e-2


def test_batch_norm_computes_and_counts_in_float32_under_bfloat16():
    x = jnp.asarray(normal(8, 4, 4, 3), jnp.bfloat16)
    norm, expected = lma_jax.layers.BatchNorm(3), lma_jax.layers.BatchNorm(3)
    for _ in range(2):  # in training mode, then in evaluation mode
        y = expected(x.astype(jnp.float32))
        np.testing.assert_array_equal(norm(x), y.astype(jnp.bfloat16))
        for variable in ("mean", "var"):
            assert getattr(norm, variable).dtype == jnp.float32
            np.testing.assert_array_equal(getattr(norm, variable)[...], getattr(expected, variable)[...])
        norm.eval()
        expected.eval()


def test_batch_norm_refuses_to_train_on_a_single_value_per_channel():
    norm = lma_jax.layers.BatchNorm(3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(jnp.ones((1, 1, 1, 3)))
    norm.eval()
    assert norm(jnp.ones((1, 1, 1, 3))).shape == (1, 1, 1, 3)


def test_relu6_and_its_gradient_are_those_of_torch_including_the_corners():
    x = np.array([-1, 0, 1e-3, 3, 5.999, 6, 7], np.float32)
    leaf = torch.from_numpy(x).requires_grad_()
    output = torch.nn.functional.relu6(leaf)
    output.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]
    relu6 = lma_jax.layers.ReLU6()
    np.testing.assert_array_equal(relu6(jnp.asarray(x)), output.detach())
    np.testing.assert_array_equal(jax.grad(lambda x: relu6(x).sum())(jnp.asarray(x)), leaf.grad)
