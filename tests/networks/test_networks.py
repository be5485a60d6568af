"""The backbones, plain and with LMA, in both frameworks: size, names, calls and initial weights."""

import math
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
import lma_jax.layers
import lma_torch
from tests.helpers.arrays import normal, relative_error, to_nhwc
from tests.helpers.published import BACKBONES_AND_LMA
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.weights import golden_weights

FRAMEWORKS = ["jax", "torch"]
PACKAGES = [lma_jax, lma_torch]
NAMES = list(BACKBONES_AND_LMA)
STAGES = {  # planes * expansion, and the number of blocks
    "resnet18": [(64, 2), (128, 2), (256, 2), (512, 2)],
    "resnet34": [(64, 3), (128, 4), (256, 6), (512, 3)],
    "resnet50": [(256, 3), (512, 4), (1024, 6), (2048, 3)],
    "resnet101": [(256, 3), (512, 4), (1024, 23), (2048, 3)],
    "resnet152": [(256, 3), (512, 8), (1024, 36), (2048, 3)],
}


def backbone_of(name):
    return name.removesuffix("_lma")


def shapes(framework, name, **options):
    return torch_shapes(name, **options) if framework == "torch" else jax_shapes(name, **options)


def modules(framework, model):
    """Dotted path and module, for every module of a network."""
    if framework == "torch":
        return list(model.named_modules())
    return [(".".join(map(str, path)), module) for path, module in nnx.iter_modules(model)]


def apply(method, images_shape):
    """The shape that a method of a network without values maps an NCHW shape to, also in NCHW."""
    if isinstance(method.__self__, torch.nn.Module):
        return tuple(method(torch.empty(images_shape, device="meta")).shape)
    batch, channels, *spatial = images_shape
    images = jax.ShapeDtypeStruct((batch, *spatial, channels), jnp.float32)
    model, name = method.__self__, method.__name__
    batch, *spatial, channels = nnx.eval_shape(lambda model, x: getattr(model, name)(x), model, images).shape
    return (batch, channels, *spatial)


# Size and structure


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_parameters_is_the_published_one(framework, name):
    model = shapes(framework, name)
    parameters = model.parameters() if framework == "torch" else jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(math.prod(parameter.shape) for parameter in parameters) == BACKBONES_AND_LMA[name].parameters


def norm(path):
    return {f"{path}.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def lma(path):
    return {f"{path}.conv_h.weight", f"{path}.conv_w.weight"}


def resnet_keys(name):
    """torchvision's names and `attention`."""
    convs = 2 if backbone_of(name) in ("resnet18", "resnet34") else 3
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | norm("bn1")
    for stage, (_, depth) in enumerate(STAGES[backbone_of(name)], start=1):
        for i in range(depth):
            block = f"layer{stage}.{i}"
            for k in range(1, convs + 1):
                keys |= {f"{block}.conv{k}.weight"} | norm(f"{block}.bn{k}")
            if i == 0 and (stage > 1 or convs == 3):
                keys |= {f"{block}.downsample.0.weight"} | norm(f"{block}.downsample.1")
            if name.endswith("_lma"):
                keys |= lma(f"{block}.attention")
    return keys


def mobilenetv2_keys(name):
    """torchvision's names; LMA is element 2 of a block with expansion and shifts the two that follow."""
    keys = {"classifier.1.weight", "classifier.1.bias"}
    for path in ("features.0", "features.18", "features.1.conv.0"):
        keys |= {f"{path}.0.weight"} | norm(f"{path}.1")
    keys |= {"features.1.conv.1.weight"} | norm("features.1.conv.2")
    for i in range(2, 18):
        block = f"features.{i}.conv"
        for k in (0, 1):
            keys |= {f"{block}.{k}.0.weight"} | norm(f"{block}.{k}.1")
        if name.endswith("_lma"):
            keys |= lma(f"{block}.2") | {f"{block}.3.weight"} | norm(f"{block}.4")
        else:
            keys |= {f"{block}.2.weight"} | norm(f"{block}.3")
    return keys


@pytest.mark.parametrize("name", NAMES)
def test_the_state_dict_has_the_names_of_torchvision(name):
    expected = mobilenetv2_keys(name) if backbone_of(name) == "mobilenetv2" else resnet_keys(name)
    assert set(torch_shapes(name).state_dict()) == expected


def expected_attention(name):
    """Path and channels of every LMA layer."""
    if backbone_of(name) == name:
        return {}
    if backbone_of(name) == "mobilenetv2":
        block_inputs = [16] + 2 * [24] + 3 * [32] + 4 * [64] + 3 * [96] + 3 * [160]
        return {f"features.{i}.conv.2": 6 * channels for i, channels in enumerate(block_inputs, start=2)}
    stages = enumerate(STAGES[backbone_of(name)], start=1)
    return {f"layer{s}.{i}.attention": channels for s, (channels, depth) in stages for i in range(depth)}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_block_but_the_first_of_mobilenetv2_has_one_lma_on_its_channels(framework, name):
    layers = {
        path: module.channels
        for path, module in modules(framework, shapes(framework, name))
        if isinstance(module, (lma_jax.LMA, lma_torch.LMA))
    }
    assert layers == expected_attention(name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("width_mult", "expected"),
    [
        (0.1, [4, 4, 4, 4, 8, 12, 16, 32, 1280]),
        (0.25, [8, 8, 8, 8, 16, 24, 40, 80, 1280]),
        (0.5, [16, 8, 16, 16, 32, 48, 80, 160, 1280]),
        (1.0, [32, 16, 24, 32, 64, 96, 160, 320, 1280]),
        (1.4, [48, 24, 32, 48, 88, 136, 224, 448, 1792]),
    ],
)
def test_width_mult_scales_the_channels_and_rounds_them(framework, width_mult, expected):
    model = shapes(framework, "mobilenetv2_lma", width_mult=width_mult, num_classes=10)
    norm_type = torch.nn.BatchNorm2d if framework == "torch" else lma_jax.layers.BatchNorm
    norms: dict[str, Any] = {path: m for path, m in modules(framework, model) if isinstance(m, norm_type)}
    last_of_each_row = ["features.0.1", "features.1.conv.2"] + [f"features.{i}.conv.4" for i in (3, 6, 10, 13, 16, 17)]
    paths = [*last_of_each_row, "features.18.1"]
    widths = [norms[p].num_features if framework == "torch" else norms[p].scale.shape[0] for p in paths]
    assert widths == expected
    assert apply(model.forward_features, (2, 3, 64, 64)) == (2, expected[-1], 2, 2)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("width", [8, 64])
def test_width_is_that_of_the_first_stage(framework, width):
    model = shapes(framework, "resnet50_bam", width=width, num_classes=10)
    found: dict[str, Any] = dict(modules(framework, model))
    paths = ["bn1", "layer1.0.bn2", "layer4.0.bn2", *(f"layer{stage}.0.bn3" for stage in (1, 2, 3, 4))]
    widths = [found[p].num_features if framework == "torch" else found[p].scale.shape[0] for p in paths]
    assert widths == [width * factor for factor in (1, 1, 8, 4, 8, 16, 32)]
    assert sorted(path for path in found if type(found[path]).__name__ == "BAM") == ["layer1.3", "layer2.4", "layer3.6"]
    assert apply(model.forward_features, (2, 3, 64, 64)) == (2, 32 * width, 2, 2)


# Calling


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_features_and_head_have_the_documented_shapes(framework, name):
    model = shapes(framework, name, num_classes=37)
    model.eval()
    channels = 1280 if backbone_of(name) == "mobilenetv2" else STAGES[backbone_of(name)][-1][0]
    call = model.forward if framework == "torch" else model.__call__
    assert apply(model.forward_features, (2, 3, 224, 160)) == (2, channels, 7, 5)
    assert apply(call, (2, 3, 224, 160)) == (2, 37)


@pytest.mark.usefixtures("compile_each_layer_once")
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["resnet18_lma", "mobilenetv2_lma"])
def test_the_network_is_its_head_after_its_features(framework, name):
    options = dict(narrow_options(name), num_classes=10)
    weights = golden_weights(torch_shapes(name, **options))
    images: Any = normal(2, 3, 40, 33).astype(np.float32)
    model: Any
    if framework == "torch":
        model = lma_torch.create_model(name, **options)
        model.load_state_dict(weights)
        images = torch.from_numpy(images)
    else:
        model = convert.to_jax(weights, jax_shapes(name, **options))
        images = to_nhwc(images)
    model.eval()
    logits = model(images)
    assert relative_error(model.forward_head(model.forward_features(images)), logits) <= 1e-6
    assert relative_error(logits[0], logits[1]) > 1e-5


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_refused_and_the_nearest_named(package):
    options = {"rngs": nnx.Rngs(0)} if package is lma_jax else {}
    for wrong, nearest in [("resnet50-lma", "resnet50_lma"), ("mobilenet_v2", "mobilenetv2"), ("ResNet18", "resnet18")]:
        with pytest.raises(ValueError, match=f"unknown model '{wrong}', did you mean '{nearest}'"):
            package.create_model(wrong, **options)


@pytest.mark.parametrize("package", PACKAGES)
def test_list_models_takes_a_pattern_and_sorts(package):
    assert set(NAMES) <= set(package.list_models())
    assert package.list_models() == sorted(package.list_models())
    assert package.list_models("resnet1*_lma") == ["resnet101_lma", "resnet152_lma", "resnet18_lma"]
    assert package.list_models("densenet*") == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["resnet18_lma", "mobilenetv2"])
def test_networks_start_in_training_mode_and_eval_and_train_switch_it(framework, name):
    model = shapes(framework, name)

    def training():
        if framework == "torch":
            return {module.training for module in model.modules()}
        norms = {not m.use_running_average for _, m in nnx.iter_modules(model) if hasattr(m, "use_running_average")}
        return norms | {not m.deterministic for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Dropout)}

    assert training() == {True}
    model.eval()
    assert training() == {False}
    model.train()
    assert training() == {True}


# Initial weights


@pytest.fixture(scope="module", params=FRAMEWORKS)
def initial_weights(request):
    """The initial weights of two networks as state_dicts."""
    names = ("resnet18_lma", "mobilenetv2_lma")
    if request.param == "torch":
        torch.manual_seed(0)
        return [lma_torch.create_model(name).state_dict() for name in names]
    return [
        convert.to_torch(nnx.jit(lambda name=name: lma_jax.create_model(name, rngs=nnx.Rngs(0)))()) for name in names
    ]


def is_lma_kernel(name):
    return name.endswith(("conv_h.weight", "conv_w.weight"))


def test_convolutions_start_kaiming_normal_with_fan_out(initial_weights):
    large = 0
    for weights in initial_weights:
        for name, weight in weights.items():
            if weight.ndim == 4 and weight.numel() >= 2000:
                out_channels, _, height, width = weight.shape
                std = math.sqrt(2 / (out_channels * height * width))
                assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel())), name
                assert abs(weight.mean().item()) <= 5 * std / math.sqrt(weight.numel()), name
                large += 1
    assert large > 60


def test_kernels_of_lma_start_normal_with_their_fan_out(initial_weights):
    for weights in initial_weights:
        scaled = [w.ravel() * math.sqrt(w.numel() / 2) for name, w in weights.items() if is_lma_kernel(name)]
        assert torch.cat(scaled).std().item() == pytest.approx(1, rel=0.3)


def test_no_two_weights_start_equal(initial_weights):
    for weights in initial_weights:
        firsts = [w.ravel()[0].item() for name, w in weights.items() if w.ndim >= 2]
        assert len(set(firsts)) == len(firsts)


def test_the_classifier_starts_normal_and_small_without_bias(initial_weights):
    for weights in initial_weights:
        (weight,) = (w for w in weights.values() if w.ndim == 2)
        assert weight.std().item() == pytest.approx(0.01, rel=0.01)
        bias = weights["fc.bias"] if "fc.bias" in weights else weights["classifier.1.bias"]
        assert not bias.any()


def test_batch_norms_start_as_the_identity(initial_weights):
    for weights in initial_weights:
        norms = [name.removesuffix(".running_mean") for name in weights if name.endswith(".running_mean")]
        assert norms
        for norm in norms:
            assert (weights[f"{norm}.weight"] == 1).all()
            assert (weights[f"{norm}.running_var"] == 1).all()
            assert not weights[f"{norm}.bias"].any()
            assert not weights[f"{norm}.running_mean"].any()


def test_the_seed_decides_the_initial_weights():
    def conv1(seed):
        model = nnx.jit(lambda: lma_jax.BasicBlock(8, 8, rngs=nnx.Rngs(seed)))()
        return np.asarray(model.conv1.kernel[...])

    np.testing.assert_array_equal(conv1(0), conv1(0))
    assert not np.array_equal(conv1(0), conv1(1))


# bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_parameters_and_statistics_in_float32(name):
    model = jax_shapes(name, dtype=jnp.bfloat16, num_classes=10)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def train(model, images):
        return model(images), nnx.state(model, (nnx.Param, nnx.BatchStat))

    logits, state = nnx.eval_shape(train, model, images)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


@pytest.mark.usefixtures("compile_each_layer_once")
def test_bfloat16_is_near_float32():
    options = dict(narrow_options("resnet18_lma"), num_classes=10)
    weights = golden_weights(torch_shapes("resnet18_lma", **options))
    images = to_nhwc(normal(4, 3, 33, 48).astype(np.float32))
    networks = [
        convert.to_jax(weights, jax_shapes("resnet18_lma", dtype=dtype, **options))
        for dtype in (jnp.bfloat16, jnp.float32)
    ]
    logits, expected = (network(images).astype(jnp.float32) for network in networks)
    assert relative_error(logits, expected) <= 0.1
    statistics, expected = (convert.to_torch(network) for network in networks)
    for key in expected:
        if "running" in key:
            assert relative_error(statistics[key], expected[key]) <= 0.1, key


@pytest.mark.parametrize("name", ["resnet18_lma", "mobilenetv2"])
def test_without_classes_the_pooled_features_come_out(name):
    """As in timm: no head, in training mode too."""
    options = narrow_options(name)
    torch_model = lma_torch.create_model(name, num_classes=0, **options)
    jax_model: Any = jax_shapes(name, num_classes=0, **options)
    convert.to_jax(torch_model.state_dict(), jax_model)
    assert not [key for key in torch_model.state_dict() if key.startswith(("fc", "classifier"))]
    assert convert.to_torch(jax_model).keys() == torch_model.state_dict().keys()
    features = torch.randn(2, torch_model.num_features, 3, 4)
    pooled = features.mean((2, 3))
    torch.testing.assert_close(torch_model.forward_head(features), pooled)
    actual = jax_model.forward_head(jnp.asarray(features.permute(0, 2, 3, 1).numpy()))
    np.testing.assert_allclose(actual, pooled, atol=1e-6)
    assert jax_model.num_features == torch_model.num_features == torch_model.eval()(torch.zeros(1, 3, 32, 32)).shape[1]


@pytest.mark.parametrize("num_classes", [-1, 10.0, True, "10"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_another_number_of_classes_is_refused(name, num_classes):
    for shapes in (torch_shapes, jax_shapes):
        with pytest.raises(ValueError, match="whole number of at least 0 is needed, got num_classes="):
            shapes(name, num_classes=num_classes)


@pytest.mark.parametrize("name", [None, 5, b"resnet18", ["resnet18"]])
def test_a_name_is_a_string(name):
    for create in (lma_torch.create_model, partial(lma_jax.create_model, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match="named by a string"):
            create(name)
