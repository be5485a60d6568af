"""Gates from profiles of the map before: the same function as attention after convolution and normalisation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.test_util import check_grads

import convert
import lma_jax.attention
import lma_jax.profiles
import lma_torch.attention
import lma_torch.profiles
from lma_jax.intercept import intercept
from lma_jax.layers import Affine, BatchNorm, conv2d, relu
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.weights import golden_weights

BLOCKS: dict[str, tuple[Any, Any]] = {
    "basic": (lma_jax.BasicBlock, lma_torch.BasicBlock),
    "bottleneck": (lma_jax.Bottleneck, lma_torch.Bottleneck),
}
# Gates come first behind a 1x1 convolution on maps of 14 x 14, and behind a 3x3 one on maps of 32 x 32.
CASES = [
    ("bottleneck", 1, (14, 15), "lma", True),
    ("bottleneck", 2, (29, 28), "lma", True),
    ("bottleneck", 1, (1, 6), "lma", False),
    ("basic", 1, (32, 33), "lma", True),
    ("basic", 2, (64, 63), "lma", True),
    ("bottleneck", 1, (15, 14), "se", True),
    ("basic", 1, (32, 33), "eca", True),
    ("bottleneck", 2, (28, 27), "ca", True),
]


def twin_blocks(kind: str, attention: str, stride: int) -> tuple[Any, Any]:
    """A block of 16 to 32 channels in both frameworks with equal weights, in float64 (it needs the fixture x64)."""
    of_jax, of_torch = BLOCKS[kind]
    planes = 32 // of_jax.expansion
    expected: Any = lma_torch.attention.ATTENTIONS[attention].resnet
    module: Any = lma_jax.attention.ATTENTIONS[attention].resnet
    torch_block = of_torch(16, planes, stride=stride, attention=expected, dtype=torch.float64)
    torch_block.load_state_dict(golden_weights(torch_block))
    jax_block = of_jax(16, planes, stride=stride, attention=module, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    return convert.to_jax(torch_block.state_dict(), jax_block), torch_block


def unaware(block: Any, patch: pytest.MonkeyPatch) -> Any:
    """The block without the path by profiles."""
    patch.setattr(type(block), "gates_first", lambda *_: False)
    return block


def step(block: Any, image: jax.Array) -> Any:
    """A loss of the block's output, which is returned with the running statistics, and the gradients of everything."""
    graphdef, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)  # type: ignore[misc]

    def loss(params: Any, image: jax.Array) -> Any:
        model = nnx.merge(graphdef, params, jax.tree.map(jnp.asarray, stats), copy=True)
        y = model(image)
        return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum(), (y, nnx.state(model, nnx.BatchStat))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, image)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["H", "W", "HW"])
@pytest.mark.parametrize(("kernel_size", "height", "width"), [(1, 4, 3), (3, 5, 4), (3, 1, 6), (3, 2, 1), (5, 3, 1)])
def test_the_profile_of_a_convolution_follows_from_profiles_of_its_input(name, kernel_size, height, width):
    expected = torch.nn.Conv2d(3, 4, kernel_size, padding=kernel_size // 2, dtype=torch.float64)
    conv = conv2d(3, 4, kernel_size, padding=kernel_size // 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    convert.to_jax({f"0.{key}": value for key, value in expected.state_dict().items()}, nnx.List([conv]))
    u = normal(2, 3, height, width)
    affine = Affine(jnp.arange(4.0), 2.0 - jnp.arange(4.0), jnp.arange(4.0) + 1)
    mean = lma_jax.profiles.profile(affine(conv(to_nhwc(u))), name)
    found = lma_jax.profiles.profile_of_conv(conv, affine, to_nhwc(u), name)
    assert relative_error(found, mean) < 1e-13
    with torch.no_grad():
        truth = lma_torch.profiles.profile(expected(torch.from_numpy(u)), name)
        assert relative_error(lma_torch.profiles.profile_of_conv(expected, torch.from_numpy(u), name), truth) < 1e-13


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("kind", "stride", "size", "attention", "first"), CASES)
def test_a_block_with_gates_first_is_the_same_function(monkeypatch, kind, stride, size, attention, first):
    x = normal(2, 16, *size)
    for training in (True, False):
        block, expected = twin_blocks(kind, attention, stride)
        (block.train if training else block.eval)()
        last = "2" if kind == "basic" else "3"
        u = jnp.zeros((2, math.ceil(size[0] / stride), math.ceil(size[1] / stride), 8))
        assert block.gates_first(getattr(block, f"conv{last}"), getattr(block, f"bn{last}"), u) == first
        found = step(block, to_nhwc(x))
        y = expected.train(training)(torch.from_numpy(x))
        assert relative_error(to_nchw(found[0][1][0]), y) < 1e-12
        with monkeypatch.context() as patch:
            truth = step(unaware(block, patch), to_nhwc(x))
            assert relative_error(unaware(expected, patch)(torch.from_numpy(x)), y) < 1e-12
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
            assert relative_error(one, other, scale=1e-3) < 1e-9


@pytest.mark.usefixtures("x64")
def test_the_derivatives_of_the_gated_map_are_right_to_the_second_order():
    shapes = [(2, 3, 4, 5), (5,), (5,), (2, 3, 1, 5), (2, 1, 4, 5)]
    arguments = [jnp.asarray(normal(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
    check_grads(lma_jax.profiles.gated, arguments, order=2, modes=["fwd", "rev"])


@pytest.mark.usefixtures("x64")
def test_relu_is_that_of_torch_and_so_are_its_derivatives():
    x = np.array([-1.0, 0.0, 2.0])
    leaf = torch.from_numpy(x).requires_grad_()
    y = torch.relu(leaf)
    y.square().sum().backward()
    np.testing.assert_array_equal(relu(jnp.asarray(x)), y.detach())
    np.testing.assert_array_equal(jax.grad(lambda x: (relu(x) ** 2).sum())(jnp.asarray(x)), leaf.grad)
    hessian = jax.hessian(lambda x: (relu(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(hessian, np.diag([0, 0, 2]))


def jax_module(call: Any) -> Any:
    """A module in JAX that halves its input by gates, and whose call is `call`."""

    class Half(lma_jax.ProfileAttention):
        profiles = ("HW",)

        def __init__(self, channels: int, **_: Any):
            pass

        def gates_of(self, profile):
            return (jnp.full_like(profile, 0.5),)

        def __call__(self, x):
            return call(x)

    return Half


def torch_module(call: Any) -> Any:
    """The same in PyTorch."""

    class Half(lma_torch.ProfileAttention):
        profiles = ("HW",)

        def __init__(self, channels: int, **_: Any):
            super().__init__()

        def gates_of(self, profile):
            return (torch.full_like(profile, 0.5),)

        def forward(self, x):
            return call(x)

    return Half


def never(x: Any) -> Any:
    raise AssertionError("the module was called")


def test_a_module_that_declares_its_profiles_is_not_called_and_a_subclass_with_a_call_of_its_own_is():
    image = normal(1, 16, 14, 14).astype(np.float32)
    for module, apply in (
        (jax_module, lambda module: lma_jax.Bottleneck(16, 4, attention=module, rngs=nnx.Rngs(0))(to_nhwc(image))),
        (torch_module, lambda module: lma_torch.Bottleneck(16, 4, attention=module).eval()(torch.from_numpy(image))),
    ):
        apply(module(never))
        base = module(never)
        name = "forward" if module is torch_module else "__call__"
        subclass = type("Changed", (base,), {name: lambda self, x: never(x)})
        with pytest.raises(AssertionError, match="was called"):
            apply(subclass)


def test_hooks_and_intercepted_layers_see_every_map():
    image = normal(1, 16, 14, 15).astype(np.float32)
    block = lma_torch.Bottleneck(16, 4, attention=lma_torch.LMA).eval()
    expected, shapes = block(torch.from_numpy(image)), {}
    for name in ("conv3", "bn3", "attention"):
        hook = block.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
        assert relative_error(block(torch.from_numpy(image)), expected) < 1e-6
        hook.remove()
    assert shapes == dict.fromkeys(("conv3", "bn3", "attention"), (1, 16, 14, 15))

    def record(path, module, call, *args):
        output = call(*args)
        shapes[path] = output.shape
        return output

    jax_block = lma_jax.Bottleneck(16, 4, attention=lma_jax.LMA, rngs=nnx.Rngs(0))
    intercept(jax_block, record)(to_nhwc(image))
    assert {shapes[name] for name in ("conv3", "bn3", "attention")} == {(1, 14, 15, 16)}


def test_a_block_in_bfloat16_is_near_the_one_in_float32():
    image = jnp.asarray(normal(2, 14, 14, 16), jnp.float32)
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        block = lma_jax.Bottleneck(16, 4, attention=lma_jax.LMA, dtype=dtype, rngs=nnx.Rngs(0))
        outputs.append(block(image.astype(dtype)))
    assert outputs[1].dtype == jnp.bfloat16
    assert relative_error(outputs[1].astype(jnp.float32), outputs[0]) < 2e-2


def test_compiled_and_exported_programs_contain_the_gates_first():
    block = lma_torch.Bottleneck(16, 4, attention=lma_torch.LMA).eval()
    image = torch.from_numpy(normal(2, 16, 14, 15).astype(np.float32))
    program = torch.export.export(block, (image,))
    assert relative_error(program.module()(image), block(image)) < 1e-6
    convolutions = [node for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == 3 + 2  # those of the block, and of two profiles


@pytest.mark.parametrize(
    ("mean", "deviation"), [(0, 1), (1000, 0.03), (-10_000, 1), (0, 1e-4)], ids=["", "far", "farther", "flat"]
)
def test_the_first_step_of_batch_norm_is_as_exact_as_that_of_torch(mean, deviation):
    x = (mean + deviation * normal(8, 4, 16, 16)).astype(np.float32)
    x[0, 0, ::4, ::4] += 300  # the pixels that the sample reads
    exact = x.astype(np.float64)
    var = exact.var((0, 2, 3), ddof=1)
    normalised = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.sqrt(exact.var((0, 2, 3), keepdims=True) + 1e-5)
    norm, expected = BatchNorm(4, momentum=0.0), torch.nn.BatchNorm2d(4, momentum=1.0)
    y, truth = to_nchw(norm(to_nhwc(x))), expected(torch.from_numpy(x))
    floor = 2e-6
    assert relative_error(norm.var[...], var) <= max(floor, relative_error(expected.running_var, var))
    assert relative_error(y, normalised) <= max(floor, relative_error(truth, normalised))
