"""Class activation maps and gates."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
from lma_jax.cam import activation_map, gates, grad_cam, grad_cam_plus_plus, lma_layers, scale_and_resize
from lma_jax.layers import Network, conv
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.weights import golden_weights

pytestmark = pytest.mark.deep

GOLDEN = {"resnet18_lma": "resnet18", "mobilenetv2_lma": "mobilenet_v2"}
LAST_BLOCK = {"resnet18_lma": "layer4.1", "mobilenetv2_lma": "features.18"}


def network(name: str, **options) -> nnx.Module:
    """A network with the golden weights, in float64."""
    options = {"num_classes": 37, **options}
    return convert.to_jax(
        golden_weights(torch_shapes(name, **options)), jax_shapes(name, param_dtype=jnp.float64, **options)
    )


@pytest.fixture(scope="module")
def networks() -> dict[str, nnx.Module]:
    """Narrow networks."""
    with jax.enable_x64(True):
        return {name: network(name, **narrow_options(name)) for name in GOLDEN}


class Linear(Network):
    """A feature map of six channels, averaged and classified."""

    def __init__(self, **options):
        options = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0)) | options
        self.conv = conv(3, 6, 3, **options)
        self.fc = nnx.Linear(6, 4, **options)

    def forward_features(self, x):
        return self.conv(x)

    def forward_head(self, x):
        return self.fc(x.mean((1, 2)))


@pytest.mark.parametrize("name", GOLDEN)
def test_grad_cam_plus_plus_is_that_of_pytorch_grad_cam(x64, name):
    model, images = network(name), to_nhwc(normal(2, 3, 128, 160))
    with np.load(Path(__file__).parent.parent / "golden/gradcam_plusplus.npz") as arrays:
        class_id, raw, resized = (arrays[f"{GOLDEN[name]}/{k}"] for k in ("class", "raw_map", "map_0_1_input_size"))
    maps, logits = activation_map(model, images, class_id)
    assert maps.dtype == logits.dtype == jnp.float64
    assert relative_error(maps, raw) <= 1e-9
    assert relative_error(grad_cam_plus_plus(model, images, class_id), resized) <= 1e-6
    by_name, _ = activation_map(model, images, class_id, layer=LAST_BLOCK[name])
    assert relative_error(by_name, raw) <= 1e-9


def test_of_a_pooled_linear_classifier_grad_cam_is_cam(x64):
    model, images, class_ids = Linear(), to_nhwc(normal(3, 3, 5, 7)), jnp.array([2, 0, 3])
    cam = nnx.relu(jnp.einsum("nhwc,cn->nhw", model.conv(images), model.fc.kernel[:, class_ids])) / (5 * 7)
    maps, logits = activation_map(model, images, class_ids, method="gradcam")
    assert relative_error(maps, cam) <= 1e-12
    assert relative_error(logits, model(images)) <= 1e-12
    np.testing.assert_array_equal(grad_cam(model, images, class_ids), scale_and_resize(maps, (5, 7)))


def test_of_a_pooled_linear_classifier_grad_cam_plus_plus_has_a_closed_form(x64):
    model, images = Linear(), to_nhwc(normal(2, 3, 5, 7))
    features, gradient = np.asarray(model.conv(images)), np.asarray(model.fc.kernel[:, 1]) / 35
    total = features.sum((1, 2))
    alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + 1e-6)
    weights = 35 * np.maximum(gradient, 0) * alpha
    expected = np.maximum(np.einsum("nhwc,nc->nhw", features, weights), 0)
    maps, _ = activation_map(model, images, 1)
    assert relative_error(maps, expected) <= 1e-12


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("resnet18_lma", "layer4.0.attention", (2, 3, 64)),
        ("mobilenetv2_lma", "features.17", (2, 3, 32)),
    ],
)
def test_an_inner_layer_is_weighed_by_the_gradient_of_the_rest_and_the_model_left_as_it_is(
    networks, x64, name, layer, size
):
    """The mean gradient is also that of an offset which all pixels of a channel share."""
    images = to_nhwc(normal(2, 3, 64, 96))
    networks[name].train()
    graphdef, state = nnx.split(networks[name])
    before = jax.tree.map(np.array, state)
    maps, logits = activation_map(networks[name], images, layer=layer, method="gradcam")
    assert nnx.graphdef(networks[name]) == graphdef
    jax.tree.map(np.testing.assert_array_equal, nnx.state(networks[name]), before)
    path, _, last = layer.rpartition(".")

    @jax.jit
    def gradient_and_activations(state):
        model = nnx.merge(graphdef, state)
        model.eval()
        parent = attrgetter(path)(model) if path else model
        module, passing = getattr(parent, last), {}

        def shifted(x):
            passing["activations"] = module(x)
            return passing["activations"] + passing["offset"]

        def scores(offset):
            passing["offset"] = offset
            return model(images)[jnp.arange(2), logits.argmax(-1)], passing["activations"]

        setattr(parent, last, shifted)
        return jax.jacrev(scores, has_aux=True)(jnp.zeros(size[-1]))

    gradient, activations = gradient_and_activations(state)
    expected = nnx.relu(jnp.einsum("nhwc,nc->nhw", activations, gradient)) / (size[0] * size[1])
    assert maps.shape == (2, *size[:2])
    assert relative_error(maps, expected) <= 1e-9


def test_a_map_does_not_depend_on_the_batch(networks, x64):
    model, images = networks["resnet18_lma"], to_nhwc(normal(2, 3, 64, 96))
    maps, _ = activation_map(model, images, [5, 1])
    alone, _ = activation_map(model, images[1:], 1)
    assert relative_error(alone, maps[1:]) <= 1e-12


def test_the_default_class_is_the_top_one(networks, x64):
    model, images = networks["resnet18_lma"], to_nhwc(normal(2, 3, 64, 96))
    maps, logits = activation_map(model, images)
    named, _ = activation_map(model, images, logits.argmax(-1))
    np.testing.assert_array_equal(maps, named)
    other, _ = activation_map(model, images, (logits.argmax(-1) + 1) % 37)
    assert relative_error(other, maps) > 0.01


def test_maps_lie_between_0_and_1_in_bfloat16_and_for_one_pixel_too():
    model = Linear(dtype=jnp.bfloat16, param_dtype=jnp.float32)
    maps = grad_cam_plus_plus(model, jnp.asarray(to_nhwc(normal(2, 3, 6, 8)), jnp.float32))
    assert maps.shape == (2, 6, 8)
    assert maps.dtype == jnp.float32
    np.testing.assert_array_equal(maps.min((1, 2)), 0)
    np.testing.assert_allclose(maps.max((1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(scale_and_resize(jnp.full((2, 1, 1), 3.0), (8, 9)), np.zeros((2, 8, 9)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(layer="layer5"), "no layer 'layer5', did you mean 'layer"),
        (dict(layer="layer4.7"), "no layer 'layer4.7', did you mean 'layer4"),
        (dict(layer=""), "no layer ''"),
        (dict(layer="fc"), "layer 'fc' gives no feature map"),
        (dict(class_ids=37), "class_ids must be in 0 to 36"),
        (dict(class_ids=[0, -1]), "class_ids must be in 0 to 36"),
        (dict(class_ids=[0, 1, 2]), "class_ids must be an integer or 2 of them, got [0 1 2]"),
        (dict(class_ids=0.5), "class_ids must be an integer"),
        (dict(method="gradcamm"), "unknown method 'gradcamm', did you mean 'gradcam'?"),
        (dict(images=np.zeros((2, 32, 32, 3), np.uint8)), "images must be floating-point (N, H, W, 3), got uint8"),
        (dict(images=np.zeros((32, 32, 3))), "images must be floating-point (N, H, W, 3)"),
    ],
)
def test_mistakes_are_named(networks, x64, options, expected):
    arguments = {"images": to_nhwc(normal(2, 3, 32, 32)), **options}
    with pytest.raises(ValueError) as error:
        activation_map(networks["resnet18_lma"], **arguments)
    assert expected in str(error.value)


def test_a_network_without_a_head_needs_a_layer():
    class Headless(nnx.Module):
        pass

    with pytest.raises(ValueError, match="Headless has no forward_features and forward_head: name a layer"):
        activation_map(Headless(), jnp.zeros((1, 8, 8, 3)))


def test_gates_are_those_that_the_layer_applies_in_both_frameworks(networks, x64):
    images, layer = normal(2, 3, 64, 96), "layer2.1.attention"
    assert lma_layers(networks["resnet18_lma"])[::3] == ["layer1.0.attention", layer, "layer4.0.attention"]
    twin = torch_shapes("resnet18_lma", num_classes=37, dtype=torch.float64, **narrow_options("resnet18_lma"))
    twin.load_state_dict(golden_weights(twin), assign=True)
    passed = []
    twin.get_submodule(layer).register_forward_hook(lambda module, inputs, output: passed.extend([*inputs, output]))
    with torch.no_grad():
        twin.eval()(torch.from_numpy(images))
        x, y = passed
        attention: Any = twin.get_submodule(layer)
        expected = attention.gates(x)
    found = gates(networks["resnet18_lma"], to_nhwc(images), [layer])[layer]
    assert [relative_error(to_nchw(gate), other) <= 1e-9 for gate, other in zip(found, expected)] == [True, True]
    assert relative_error(x * expected[0] * expected[1], y) <= 1e-12
    with pytest.raises(ValueError, match=r"no LMA layer 'layer2.1', did you mean 'layer2.1.attention'"):
        gates(networks["resnet18_lma"], to_nhwc(images), ["layer2.1"])
