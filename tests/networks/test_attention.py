"""The attention modules of Table 1: counts, positions, equality of the frameworks, and a user's modules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import lma_jax
import lma_jax.attention
import lma_torch
import lma_torch.attention
from convert.measure import flops
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.published import OTHER_ATTENTIONS
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.weights import golden_weights, well_conditioned_weights

TABLE: dict[str, Any] = {
    name: vars(placements.resnet)["module"] for name, placements in lma_torch.attention.ATTENTIONS.items()
}
TWINS: dict[str, Any] = {
    name: vars(placements.resnet)["module"] for name, placements in lma_jax.attention.ATTENTIONS.items()
}
PAIRS = [name for name in lma_jax.list_models("*_*") if not name.endswith("_lma")]


@pytest.mark.parametrize(("name", "figures"), OTHER_ATTENTIONS.items())
def test_parameters_and_macs_are_exact(name, figures):
    model = torch_shapes(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == figures.parameters
    if name.startswith(("resnet18", "mobilenetv2")):
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(jax_shapes(name), nnx.Param))) == figures.parameters
    if figures.macs is not None:
        count = flops.count(name, torch_model=model)
        assert count.table is not None
        assert count.table1 == sum(count.table.values()) == count.published == figures.macs
        assert count.problems == []


@pytest.mark.parametrize("name", TABLE)
def test_both_frameworks_count_the_same_in_every_layer(name):
    pair: dict[str, Any] = dict(jax_model=jax_shapes(f"resnet18_{name}"), torch_model=torch_shapes(f"resnet18_{name}"))
    count = flops.count(name, (70, 50), **pair)
    assert count.jax == count.torch
    assert count.problems == []


def in_pytorch(module, x, grad_output):
    """Output, gradients and the state afterwards."""
    x = torch.from_numpy(x).requires_grad_()
    output = module(x)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(output, [x, *parameters.values()], torch.from_numpy(grad_output))
    return output.detach().numpy(), gradients[0].numpy(), dict(zip(parameters, gradients[1:])), module.state_dict()


def in_jax(module, x, grad_output):
    """The same, by PyTorch's names and with its layout."""
    graphdef, *states = nnx.split(module, nnx.Param, ...)
    params, rest = states

    def call(params, x):
        bound: Any = nnx.merge(graphdef, params, rest, copy=True)
        return bound(x), nnx.state(bound, nnx.Not(nnx.Param))

    @jax.jit
    def gradients_of(params, x, grad_output):
        output, pullback, updated = jax.vjp(call, params, x, has_aux=True)
        return output, updated, pullback(grad_output)

    output, updated, (gradients, grad_x) = gradients_of(params, to_nhwc(x), to_nhwc(grad_output))
    state = convert.to_torch(nnx.merge(graphdef, params, updated))
    return to_nchw(output), to_nchw(grad_x), convert.to_torch(nnx.merge(graphdef, gradients, rest)), state


# GSoP reduces maps of 256 channels with stride 2; SA and SGE have 64 groups where they can.
SHAPES = {"gsop": [(2, 256, 5, 4), (3, 32, 7, 6)], "sa": [(2, 128, 5, 4), (3, 48, 7, 6)], "sge": [(2, 128, 5, 4)]}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name in TABLE for shape in SHAPES.get(name, [(3, 32, 7, 6)])]
)
def test_a_module_and_its_gradients_are_the_same_in_both_frameworks(name, shape, mode, request):
    if name == "gsop":  # the gradient of its grouped convolution would take half a minute
        request.getfixturevalue("optimised")
    torch_module = TABLE[name](shape[1], dtype=torch.float64)
    torch_module.load_state_dict(golden_weights(torch_module))
    jax_module = TWINS[name](shape[1], param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    convert.to_jax(torch_module.state_dict(), jax_module)
    for module in (torch_module, jax_module):
        getattr(module, mode)()
    x, grad_output = normal(*shape), normal(*shape, seed=1)
    output, grad_x, gradients, state = in_pytorch(torch_module, x, grad_output)
    jax_output, jax_grad_x, jax_gradients, jax_state = in_jax(jax_module, x, grad_output)
    assert relative_error(jax_output, output) < 1e-9
    assert relative_error(jax_grad_x, grad_x) < 1e-9
    # A bias before a normalisation has no gradient but rounding.
    scale = 1e-3 * max((gradient.abs().max().item() for gradient in gradients.values()), default=0)
    assert all(relative_error(jax_gradients[key], gradients[key], scale=scale) < 1e-9 for key in gradients)
    running = [key for key in state if "running" in key]
    assert all(relative_error(jax_state[key], state[key]) < 1e-9 for key in running)


@pytest.mark.deep
@pytest.mark.usefixtures("x64", "compile_each_layer_once")
@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_computes_the_same_logits_in_both_frameworks(name):
    options = dict(num_classes=7, **narrow_options(name))
    torch_model = torch_shapes(name, dtype=torch.float64, **options)
    weights = well_conditioned_weights(torch_model, normal(4, 3, 40, 33, seed=1))
    jax_model = convert.to_jax(weights, jax_shapes(name, param_dtype=jnp.float64, **options))
    jax_model.eval()
    images = normal(2, 3, 40, 33)
    with torch.no_grad():
        expected = torch_model.eval()(torch.from_numpy(images))
    assert expected.isfinite().all()
    assert expected.std() > 0
    assert relative_error(jax_model(to_nhwc(images)), expected) < 1e-9


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_and_dtypes_are_taken(name, memory_format):
    module = TABLE[name](32).eval()
    x = torch.randn(2, 32, 6, 5)
    y = module(x)
    torch.testing.assert_close(module(x.to(memory_format=memory_format)), y, rtol=1e-4, atol=1e-5)
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    jax_module = TWINS[name](32, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    jax_module.eval()
    assert jax_module(jnp.ones((2, 6, 5, 32), jnp.bfloat16)).dtype == jnp.bfloat16


def positions(name: str) -> list[str]:
    """The paths of the attention modules of a network, the same in both frameworks."""
    _, attention = name.split("_")
    kinds = (type(TABLE[attention](64)), type(TWINS[attention](64, rngs=nnx.Rngs(0))))
    in_torch = [path for path, module in torch_shapes(name).named_modules() if isinstance(module, kinds[0])]
    found = [path for path, module in nnx.iter_modules(jax_shapes(name)) if isinstance(module, kinds[1])]
    assert sorted(in_torch) == sorted(".".join(map(str, path)) for path in found)
    return in_torch


def test_every_module_is_at_the_position_of_its_paper():
    assert positions("resnet18_se") == [f"layer{stage}.{block}.attention" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert positions("resnet50_bam") == ["layer1.3", "layer2.4", "layer3.6"]
    assert positions("resnet50_gsop") == [
        f"layer{stage}.{block}.attention" for stage, block in zip((1, 2, 3, 4), (2, 3, 5, 2))
    ]
    assert positions("mobilenetv2_simam")[:2] == ["features.1.conv.0.1", "features.2.conv.1.1"]
    assert len(positions("mobilenetv2_simam")) == len(positions("mobilenetv2_se")) == 17
    assert len(positions("mobilenetv2_ca")) == len(positions("mobilenetv2_lma")) == 16
    assert positions("mobilenetv2_se")[0] == "features.1.conv.3"


@pytest.mark.parametrize("name", ["resnet18_simam", "resnet50_simam"])
def test_simam_sits_between_the_last_3x3_convolution_and_its_normalisation(name):
    seen: list[torch.Tensor] = []
    model: Any = lma_torch.create_model(name)
    block = model.layer1[0]
    block.conv2.register_forward_hook(lambda _, __, output: seen.append(output))
    block.attention.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    block.bn2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    block(torch.randn(2, 64, 9, 9))
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert seen[0].size(1) == 64


def test_gsop_keeps_the_last_stage_at_the_resolution_of_the_one_before():
    with torch.no_grad():
        assert lma_torch.create_model("resnet18_gsop").eval().forward_features(torch.zeros(1, 3, 64, 96)).shape[2:] == (
            4,
            6,
        )


@pytest.mark.parametrize("package", [lma_jax, lma_torch])
@pytest.mark.parametrize(("name", "reason"), [("bam", "between the stages"), ("gsop", "last block"), ("gc", "ResNets")])
def test_a_pair_that_does_not_exist_says_why(package, name, reason):
    options = dict(rngs=nnx.Rngs(0)) if package is lma_jax else {}
    with pytest.raises(ValueError, match=f"there is no mobilenetv2_{name}: .*{reason}"):
        package.create_model(f"mobilenetv2_{name}", **options)
    assert f"mobilenetv2_{name}" not in package.list_models()


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
def test_what_starts_at_zero_stays_zero_in_a_backbone_and_biases_are_zero(backbone):
    torch_model = lma_torch.create_model(f"{backbone}_se")
    assert all(not value.any() for key, value in torch_model.state_dict().items() if key.endswith("fc1.bias"))
    state = convert.to_torch(nnx.jit(lambda: lma_jax.create_model("resnet18_gc", rngs=nnx.Rngs(0)))())
    for weights in (state, lma_torch.create_model("resnet18_gc").state_dict()):
        assert all(not value.any() for key, value in weights.items() if ".attention.fc2." in key)
        assert all(value.std() > 0 for key, value in weights.items() if key.endswith("attention.fc1.weight"))


class Scale(torch.nn.Module):
    """A user's module: a learned factor per channel."""

    def __init__(self, channels, **options):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 1, groups=channels, **options)

    def forward(self, x):
        return self.conv(x)


class JaxScale(nnx.Module):
    """Its twin."""

    def __init__(self, channels, **options):
        self.conv = nnx.Conv(channels, channels, (1, 1), feature_group_count=channels, **options)

    def __call__(self, x):
        return self.conv(x)


@pytest.fixture
def registered(monkeypatch):
    for package in (lma_jax.attention, lma_torch.attention):
        monkeypatch.setattr(package, "ATTENTIONS", package.ATTENTIONS)
    lma_jax.register_attention("scale", JaxScale)
    lma_torch.register_attention("scale", Scale, mobilenetv2="hidden")
    yield
    for package in (lma_jax.attention, lma_torch.attention):
        del package.ATTENTIONS["scale"]


def test_a_users_module_works_with_the_backbones_the_converter_and_the_counters(registered):
    assert "mobilenetv2_scale" in lma_jax.list_models()
    assert "mobilenetv2_scale" in lma_torch.list_models()
    torch_model = lma_torch.create_model("resnet18_scale", num_classes=5).eval()
    jax_model = jax_shapes("resnet18_scale", num_classes=5)
    convert.to_jax(torch_model.state_dict(), jax_model)
    jax_model.eval()
    images = normal(1, 3, 32, 32).astype(np.float32)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(images))
    assert relative_error(jax_model(to_nhwc(images)), expected) < 1e-4
    count = flops.count("mine", (64, 64), jax_model=jax_model, torch_model=torch_model)
    assert count.jax == count.torch
    assert count.problems == []
    for package, module in ((lma_jax, JaxScale), (lma_torch, Scale)):
        for taken in ("lma", "Scale", "my_scale"):
            with pytest.raises(ValueError, match="lower-case letters and digits"):
                package.register_attention(taken, module)


def test_a_constructor_can_be_passed_to_a_backbone_as_it_is():
    model: Any = lma_torch.ResNet(lma_torch.BasicBlock, (1, 1, 1, 1), num_classes=3, attention=Scale)
    assert isinstance(model.layer4[0].attention, Scale)
    model = nnx.eval_shape(
        lambda: lma_jax.ResNet(lma_jax.BasicBlock, (1, 1, 1, 1), num_classes=3, attention=JaxScale, rngs=nnx.Rngs(0))
    )
    assert isinstance(model.layer4[0].attention, JaxScale)
