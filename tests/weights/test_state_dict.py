"""The table of names and axes, and its two directions in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lma_jax.attention import ATTENTIONS
from lma_jax.layers import BatchNorm
from lma_jax.state_dict import LAYERS, from_state_dict, num_classes_of, to_state_dict
from tests.helpers.shapes import jax_shapes, torch_shapes


class Scale(nnx.Module):
    """A module with variables of its own, of any number of axes."""

    same_in_torch = ("weight", "image")

    def __init__(self, param_dtype=jnp.float32):
        self.weight = nnx.Param(jnp.arange(4, dtype=param_dtype))
        self.image = nnx.Param(jnp.arange(6, dtype=param_dtype).reshape(2, 3))
        self.bn = BatchNorm(4, param_dtype=param_dtype)


def test_a_variable_that_the_table_lacks_is_named():
    model: Any = Scale()
    model.temperature = nnx.Param(jnp.ones(1))
    for attempt in (lambda: to_state_dict(model), lambda: from_state_dict(model, {})):
        with pytest.raises(ValueError, match=r"temperature cannot be named .* same_in_torch = \('temperature',\)"):
            attempt()


def test_the_layout_transforms_of_the_table_are_inverse():
    for entry in (entry for entries in LAYERS.values() for entry in entries):
        array = np.zeros(range(2, 2 + len(entry.axes or (0,))))
        assert entry.to_torch(array).shape == entry.torch_shape(array.shape)
        assert entry.to_jax(entry.to_torch(array)).shape == array.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_variables_of_a_modules_own_keep_their_names_axes_and_bits(dtype):
    model = Scale(getattr(jnp, dtype))
    state_dict = to_state_dict(model)
    expected = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert state_dict["weight"].dtype == state_dict["image"].dtype == expected
    np.testing.assert_array_equal(state_dict["image"], model.image[...])
    changed = {name: (array + 1).astype(array.dtype) for name, array in state_dict.items()}
    returned = to_state_dict(from_state_dict(model, changed))
    assert all(returned[name].tobytes() == changed[name].tobytes() for name in ("weight", "image", "bn.weight"))


def test_a_model_owns_its_memory():
    state_dict = {name: array.copy() for name, array in to_state_dict(Scale()).items()}
    model = from_state_dict(Scale(), state_dict)
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    for array in state_dict.values():
        array += 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_module_has_the_names_and_shapes_of_pytorchs(attention):
    name = f"resnet18_{attention}"
    wanted = {key: tuple(value.shape) for key, value in torch_shapes(name, width=8).state_dict().items()}
    arrays = {key: np.zeros(shape) for key, shape in wanted.items()}
    filled = to_state_dict(from_state_dict(jax_shapes(name, width=8), arrays))
    assert {key: array.shape for key, array in filled.items()} == wanted


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2"])
def test_the_number_of_classes_is_that_of_the_head(name):
    state_dict = torch_shapes(name, num_classes=21).state_dict()
    assert num_classes_of(state_dict) == 21
    assert num_classes_of({key: value for key, value in state_dict.items() if "conv" in key}) is None
