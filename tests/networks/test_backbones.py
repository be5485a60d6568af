"""Backbones as users of timm and torchvision know them: feature maps, heads, inputs, strides and weights."""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import lma_jax
import lma_torch
from lma_jax.pretrained import adapt_input
from lma_jax.state_dict import to_state_dict
from lma_jax.weight_files import write_weights
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.weights import golden_weights

# name, options, strides of C1 to C5
CASES: list[tuple[str, dict[str, Any], list[int]]] = [
    ("resnet18_lma", {}, [2, 4, 8, 16, 32]),
    ("resnet50", {"output_stride": 8, "in_chans": 1}, [2, 4, 8, 8, 8]),
    ("resnet18_lma", {"output_stride": 16, "stem": "small"}, [1, 1, 2, 4, 8]),
    ("mobilenetv2_lma", {"output_stride": 16, "in_chans": 4}, [2, 4, 8, 16, 16]),
]


def twins(name: str, **options: Any) -> tuple[Any, Any]:
    """A narrow network in both frameworks with equal weights, in evaluation mode and float64."""
    options = {**narrow_options(name), "num_classes": 3, **options}
    torch_model: Any = lma_torch.create_model(name, dtype=torch.float64, **options).eval()
    torch_model.load_state_dict(golden_weights(torch_model))
    jax_model = nnx.eval_shape(lambda: lma_jax.create_model(name, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options))
    convert.to_jax(torch_model.state_dict(), jax_model)
    jax_model.eval()
    return jax_model, torch_model


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "options", "strides"), CASES)
def test_the_feature_maps_are_equal_and_of_the_strides_and_channels_that_they_are_said_to_have(name, options, strides):
    jax_model, torch_model = twins(name, **options)
    x = normal(1, options.get("in_chans", 3), 64, 64)
    last, maps = torch_model.forward_intermediates(torch.from_numpy(x))
    graphdef, state = nnx.split(jax_model)
    forward = jax.jit(lambda state, x: nnx.merge(graphdef, state).forward_intermediates(x))
    jax_last, jax_maps = forward(state, to_nhwc(x))
    for one, other in zip([*jax_maps, jax_last], [*maps, last], strict=True):
        assert relative_error(to_nchw(one), other) < 1e-9
    assert relative_error(last, torch_model.forward_features(torch.from_numpy(x))) == 0
    for model in (jax_model, torch_model):
        assert model.feature_info.reduction() == strides == [64 // one.shape[-1] for one in maps]
        assert model.feature_info.channels() == [one.shape[1] for one in maps]
        assert model.num_features == last.shape[1]


def shapes_of(model: Any, method: Any, size: int = 32) -> Any:
    """The shapes of the maps that a method returns for images, as (N, C, H, W)."""
    if isinstance(model, torch.nn.Module):
        return [tuple(one.shape) for one in method(model, torch.ones(2, 3, size, size, device="meta"))]
    maps = nnx.eval_shape(method, model, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))
    return [(one.shape[0], one.shape[-1], *one.shape[1:-1]) for one in maps]


@pytest.mark.parametrize("shapes", [jax_shapes, torch_shapes])
@pytest.mark.parametrize(("name", "last"), [("resnet18", "layer2"), ("mobilenetv2", "features.6")])
def test_a_network_of_features_returns_those_chosen_and_has_no_layers_behind_them(shapes, name, last):
    model = shapes(name, features_only=True, out_indices=(2, -5), **narrow_options(name))
    maps = shapes_of(model, lambda model, x: model(x))
    assert [one[1] for one in maps] == model.feature_info.channels()
    assert [32 // one[2] for one in maps] == model.feature_info.reduction() == [2, 8]
    names = model.state_dict() if shapes is torch_shapes else nnx.to_flat_state(nnx.state(model, nnx.Param)).paths
    names = [name if isinstance(name, str) else ".".join(map(str, name)) for name in names]
    assert max(names).startswith(last)
    assert not [name for name in names if name.startswith(("fc", "classifier"))]


@pytest.mark.parametrize("shapes", [jax_shapes, torch_shapes])
def test_indices_of_maps_are_timms_and_others_are_refused(shapes):
    model = shapes("resnet18", width=4)
    maps = shapes_of(model, lambda model, x: model.forward_intermediates(x, 2, intermediates_only=True))
    assert maps == shapes_of(model, lambda model, x: model.forward_intermediates(x, (4, -2))[1])
    assert maps == [(2, 16, 2, 2), (2, 32, 1, 1)]
    last = shapes_of(model, lambda model, x: [model.forward_intermediates(x, (1,), stop_early=True)[0]])
    assert last == [(2, 4, 8, 8)]
    for wrong in (0, 6, (5,), (-6, 1), ()):
        with pytest.raises(ValueError, match="the feature maps C1 to C5 have the indices 0 to 4"):
            model.forward_intermediates(None, wrong)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_a_new_classifier_starts_as_the_first_one_and_none_gives_the_pooled_features(name):
    images = torch.from_numpy(normal(2, 3, 32, 32).astype(np.float32))
    torch_model: Any = lma_torch.create_model(name, **narrow_options(name))
    jax_model: Any = jax_shapes(name, **narrow_options(name))
    torch_model.reset_classifier(7)
    jax_model.reset_classifier(7, rngs=nnx.Rngs(1))
    assert shapes_of(jax_model, lambda model, x: [model(x)]) == [(2, 7)]
    assert torch_model(images).shape == (2, 7)
    for weight in (torch_model.get_classifier().weight.detach(), jax_model.get_classifier().kernel[...]):
        assert float(weight.std()) == pytest.approx(0.01, rel=0.2)
    for model in (torch_model, jax_model):
        model.reset_classifier(0)
        assert model.num_classes == 0
    pooled = torch_model.forward_features(images).mean((2, 3))
    assert relative_error(torch_model(images), pooled) < 1e-5
    assert shapes_of(jax_model, lambda model, x: [model(x)]) == [(2, jax_model.num_features)]


def test_weights_of_a_file_fill_a_network_with_other_classes_and_channels(tmp_path):
    source: Any = lma_torch.create_model("resnet18_lma", num_classes=3, width=4, stem="small").eval()
    arrays = {key: value.numpy() for key, value in source.state_dict().items()}
    for file in (tmp_path / "weights.safetensors", tmp_path / "weights.pth"):
        write_weights(file, arrays, {})
    images = normal(2, 3, 32, 32).astype(np.float32)
    expected = source(torch.from_numpy(images))
    options: dict[str, Any] = dict(weights=tmp_path / "weights.safetensors")  # which show stem and width
    same: Any = lma_torch.create_model("resnet18_lma", **{**options, "weights": tmp_path / "weights.pth"}).eval()
    assert relative_error(same(torch.from_numpy(images)), expected) == 0
    in_jax = nnx.jit(lambda: lma_jax.create_model("resnet18_lma", in_chans=1, **options, rngs=nnx.Rngs(0)))()
    back = convert.to_torch(in_jax)
    grey: Any = lma_torch.create_model("resnet18_lma", num_classes=5, in_chans=1, **options)
    for weights in (grey.state_dict(), back):
        assert relative_error(weights.pop("conv1.weight"), source.conv1.weight.sum(1, keepdim=True)) < 1e-6
        assert all(weights[key].equal(source.state_dict()[key]) for key in weights if not key.startswith("fc"))
    assert grey.fc.weight.shape == (5, 32)
    assert back["fc.weight"].equal(source.fc.weight)
    create: Any
    for create in (lma_torch.create_model, partial(lma_jax.create_model, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=r"holds weights of a network with width=4, not width=8: leave out these"):
            create("resnet18_lma", width=8, **options)
        with pytest.raises(ValueError, match="attention") as error:
            create("resnet18", **options)
        assert len(str(error.value)) < 600


def test_the_input_is_adapted_as_in_timm():
    kernel = normal(2, 3, 1, 1).astype(np.float32)
    r, g, b = kernel[:, 0], kernel[:, 1], kernel[:, 2]
    for channels, expected in ((1, [r + g + b]), (2, [1.5 * r, 1.5 * g]), (4, [0.75 * one for one in (r, g, b, r)])):
        np.testing.assert_allclose(adapt_input(kernel, channels), np.stack(expected, 1), rtol=1e-6)


@pytest.mark.parametrize("name", ["resnet18_lma", "mobilenetv2"])
def test_stochastic_depth_leaves_out_branches_of_images_in_training_and_keeps_the_mean(name):
    last = "layer4" if name.startswith("resnet") else "features"
    options = {**narrow_options(name), "drop_path": 0.5}
    torch_model: Any = lma_torch.create_model(name, **options)
    jax_model: Any = lma_jax.create_model(name, rngs=nnx.Rngs(0), **options)
    index = -1 if last == "layer4" else 16  # the last block that has a shortcut
    torch_block, jax_block = getattr(torch_model, last)[index], list(getattr(jax_model, last))[index]
    rate = 0.5 if last == "layer4" else 0.5 * 15 / 16
    x = normal(64, torch_block.drop_path and next(torch_block.parameters()).shape[1], 3, 3).astype(np.float32)
    assert torch_block.drop_path.rate == jax_block.drop_path.rate == pytest.approx(rate)
    for dropped in (torch_block.drop_path(torch.from_numpy(x)), to_nchw(jax_block.drop_path(to_nhwc(x)))):
        ratio = np.asarray(dropped) / x
        kept = ratio.max((1, 2, 3)) > 0
        np.testing.assert_allclose(ratio[kept], 1 / (1 - rate), rtol=1e-5)
        assert not ratio[~kept].any()
        assert 10 < kept.sum() < 54
    torch_model.eval()
    jax_model.eval()
    assert torch_block.drop_path(torch.from_numpy(x)).equal(torch.from_numpy(x))
    assert (jax_block.drop_path(to_nhwc(x)) == to_nhwc(x)).all()
    first = torch_model.layer1[0] if last == "layer4" else torch_model.features[1]
    assert first.drop_path is None


def test_branches_that_start_from_zero_leave_blocks_as_their_shortcuts():
    images = normal(1, 8, 6, 6).astype(np.float32)
    for name, width in (("resnet18", 8), ("resnet50_lma", 2)):
        model: Any = lma_torch.create_model(name, zero_init_residual=True, width=width)
        y = model.layer1[1](torch.from_numpy(images))
        assert relative_error(y, torch.relu(torch.from_numpy(images))) == 0
    in_jax = nnx.jit(lambda: lma_jax.create_model("resnet18", zero_init_residual=True, width=2, rngs=nnx.Rngs(0)))()
    weights = to_state_dict(in_jax)
    for key, value in model.state_dict().items():
        if key.endswith(("bn1.weight", "bn3.weight")):
            assert value.eq(0).all() == key.endswith("bn3.weight")
    assert [key for key, value in weights.items() if key.endswith("weight") and not value.any()] == [
        f"layer{stage}.{block}.bn2.weight" for stage in range(1, 5) for block in range(2)
    ]


@pytest.mark.parametrize("package", [lma_jax, lma_torch])
def test_unknown_options_are_refused_with_the_nearest_name(package):
    rngs = {"rngs": nnx.Rngs(0)} if package is lma_jax else {}
    for options, message in (
        (dict(widht=8), "resnet18 has no option 'widht', did you mean 'width'"),
        (dict(self=8), "resnet18 has no option 'self', did you mean '(stem|width)'"),
        (dict(block=8), "resnet18 has no option 'block'"),
        (dict(stem="smal"), "stem must be one of imagenet, small, not 'smal'"),
        (dict(stem=["small"]), r"stem must be one of imagenet, small, not \['small'\]"),
        (dict(output_stride=4), "output_stride must be 8, 16 or 32, not 4"),
        (dict(drop_path=1.0), "drop_path must be from 0 to below 1, not 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            package.create_model("resnet18", **options, **rngs)


@pytest.mark.parametrize("package", [lma_jax, lma_torch])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("width", "a whole number of at least 1 is needed, got width="),
        ("in_chans", "a whole number of at least 1 is needed, got in_chans="),
        ("drop_path", "drop_path must be from 0 to below 1, not "),
        ("width_mult", "width_mult must be a number above 0, not "),
        ("dropout", "dropout must be from 0 to below 1, not "),
    ],
)
def test_impossible_values_are_refused_alike(package, option, message):
    rngs = {"rngs": nnx.Rngs(0)} if package is lma_jax else {}
    name = "resnet18" if option in ("width", "drop_path") else "mobilenetv2"
    for value in (-1, "8", math.nan, *([0, 8.5, True] if "whole" in message else [])):
        with pytest.raises(ValueError, match=message + re.escape(repr(value))):
            package.create_model(name, **{option: value}, **rngs)
