"""The weight map in tensors: exact in both directions, strict, and complete in what it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
from lma_jax.layers import BatchNorm, conv
from tests.helpers.pairs import as_float32
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.weights import golden_weights


class Tiny(nnx.Module):
    """One layer of every kind."""

    def __init__(self, param_dtype=jnp.float32):
        options = dict(param_dtype=param_dtype, rngs=nnx.Rngs(0))
        self.conv1 = conv(3, 4, 3, **options)
        self.depthwise = conv(4, 4, 3, groups=4, **options)
        self.bn1 = BatchNorm(4, **options)
        self.fc = nnx.Linear(4, 2, **options)


def leaves(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))]


@pytest.mark.parametrize("name", ["resnet18", "resnet18_lma", "resnet50_lma", "mobilenetv2", "mobilenetv2_lma"])
def test_a_state_dict_comes_back_bit_for_bit(name):
    options = dict(num_classes=7, **narrow_options(name))
    weights = {key: as_float32(value) for key, value in golden_weights(torch_shapes(name, **options)).items()}
    returned = convert.to_torch(convert.to_jax(weights, jax_shapes(name, **options)))
    assert returned.keys() == weights.keys()
    assert all(torch.equal(returned[key], weights[key]) for key in weights)


def test_layouts_are_those_of_the_frameworks():
    state_dict = convert.to_torch(Tiny())
    shapes = {key: tuple(value.shape) for key, value in state_dict.items() if key.endswith("weight")}
    assert shapes == {
        "conv1.weight": (4, 3, 3, 3),
        "depthwise.weight": (4, 1, 3, 3),
        "bn1.weight": (4,),
        "fc.weight": (2, 4),
    }


def test_tensors_own_their_memory():
    model = Tiny()
    before = leaves(model)
    for tensor in convert.to_torch(model).values():
        tensor.add_(1)
    for old, new in zip(before, leaves(model)):
        np.testing.assert_array_equal(old, new)


def test_the_model_owns_its_memory():
    model = Tiny()
    state_dict = convert.to_torch(model)
    before = leaves(convert.to_jax(state_dict, model))
    before = [value.copy() for value in before]
    for tensor in state_dict.values():
        tensor.add_(1)
    for old, new in zip(before, leaves(model)):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(True):
        model = Tiny(getattr(jnp, dtype))
        state_dict = convert.to_torch(model)
        assert state_dict["conv1.weight"].dtype == getattr(torch, dtype)
        before = leaves(model)
        for old, new in zip(before, leaves(convert.to_jax(state_dict, model))):
            assert (old.dtype, old.tobytes()) == (new.dtype, new.tobytes())


def test_all_problems_are_listed_at_once_and_the_model_is_left_as_it_was():
    model = Tiny()
    before = leaves(model)
    state_dict = {key: value + 1 for key, value in convert.to_torch(model).items()}
    del state_dict["bn1.running_mean"], state_dict["fc.bias"]
    state_dict["conv1.weight"] = torch.zeros(4, 3, 5, 5)
    state_dict["extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="4 problems") as error:
        convert.to_jax(state_dict, model)
    for problem in (
        "missing bn1.running_mean (4,)",
        "missing fc.bias (2,)",
        "mis-shaped conv1.weight (4, 3, 5, 5), the model has (4, 3, 3, 3)",
        "unexpected extra.weight (1,)",
    ):
        assert problem in str(error.value)
    for old, new in zip(before, leaves(model)):
        np.testing.assert_array_equal(old, new)


def test_the_weights_of_another_network_are_refused():
    weights = golden_weights(torch_shapes("resnet18_lma", width=8))
    with pytest.raises(ValueError, match=r"16 problems: unexpected .*attention.conv_h.weight"):
        convert.to_jax(weights, jax_shapes("resnet18", width=8))
