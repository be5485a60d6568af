"""The feature pyramid: equal in both frameworks, and torchvision's by its names and values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import convert
import lma_jax
import lma_torch
from lma_jax.pyramid import upsample
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.weights import golden_weights

IN_CHANNELS, CHANNELS = (3, 5, 7), 4
# Odd sizes, as of images that no stride divides, and two maps of one size, as behind dilated convolutions.
SIZES = ((11, 14), (6, 7), (6, 7))
# The extra block, and its channels.
EXTRA: dict[str, tuple[str, tuple[int, ...]]] = {
    "pool": ("LastLevelMaxPool", ()),
    "p5": ("LastLevelP6P7", (CHANNELS, CHANNELS)),
    "c5": ("LastLevelP6P7", (IN_CHANNELS[-1], CHANNELS)),
}


def extra_block(package: Any, extra: str, **options: Any) -> Any:
    name, channels = EXTRA[extra]
    return getattr(package, name)(*channels, **(options if channels else {}))


def torch_pyramid(extra: str) -> Any:
    """With weights drawn from the names, in float64."""
    blocks = extra_block(lma_torch, extra, dtype=torch.float64)
    pyramid = lma_torch.FeaturePyramid(IN_CHANNELS, CHANNELS, extra_blocks=blocks, dtype=torch.float64)
    pyramid.load_state_dict(golden_weights(pyramid))
    return pyramid


def jax_pyramid(extra: str) -> Any:
    options: dict[str, Any] = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    blocks = extra_block(lma_jax, extra, **options)
    return lma_jax.FeaturePyramid(IN_CHANNELS, CHANNELS, extra_blocks=blocks, **options)


def maps_of() -> list[np.ndarray]:
    return [normal(2, channels, *size, seed=channels) for channels, size in zip(IN_CHANNELS, SIZES)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("extra", EXTRA)
def test_the_frameworks_compute_the_same_pyramid_and_gradients(extra):
    twin = torch_pyramid(extra)
    pyramid = convert.to_jax(twin.state_dict(), nnx.eval_shape(lambda: jax_pyramid(extra)))
    inputs = [torch.from_numpy(x).requires_grad_() for x in maps_of()]
    expected = twin(inputs)
    sum(y.square().sum() for y in expected).backward()
    graphdef, params = nnx.split(pyramid)

    def loss(params, maps):
        outputs = nnx.merge(graphdef, params)(maps)
        return sum(jnp.square(y).sum() for y in outputs), outputs

    maps = [to_nhwc(x) for x in maps_of()]
    (_, outputs), (params, maps) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, maps)
    assert len(outputs) == len(SIZES) + dict(pool=1, p5=2, c5=2)[extra]
    for one, other in zip([*outputs, *maps], [*expected, *(x.grad for x in inputs)], strict=True):
        assert relative_error(to_nchw(one), other) < 1e-9
    gradients = convert.to_torch(nnx.merge(graphdef, params))
    for name, weight in twin.named_parameters():
        assert relative_error(gradients[name], weight.grad) < 1e-9


@pytest.mark.parametrize("extra", ["pool", "c5"])
def test_its_entries_are_torchvisions(extra):
    expected: dict[str, tuple[int, ...]] = {}
    for level, channels in enumerate(IN_CHANNELS):
        expected[f"inner_blocks.{level}.0.weight"] = (CHANNELS, channels, 1, 1)
        expected[f"layer_blocks.{level}.0.weight"] = (CHANNELS, CHANNELS, 3, 3)
        expected |= dict.fromkeys([f"{kind}_blocks.{level}.0.bias" for kind in ("inner", "layer")], (CHANNELS,))
    if extra == "c5":
        for name, channels in (("p6", IN_CHANNELS[-1]), ("p7", CHANNELS)):
            expected[f"extra_blocks.{name}.weight"] = (CHANNELS, channels, 3, 3)
            expected[f"extra_blocks.{name}.bias"] = (CHANNELS,)
    assert {name: tuple(value.shape) for name, value in torch_pyramid(extra).state_dict().items()} == expected


def test_it_is_torchvisions():
    ops = pytest.importorskip("torchvision.ops.feature_pyramid_network", exc_type=ImportError)
    maps = [torch.from_numpy(x) for x in maps_of()]
    for extra in EXTRA:
        twin = torch_pyramid(extra)
        real = ops.FeaturePyramidNetwork(IN_CHANNELS, CHANNELS, extra_block(ops, extra)).double()
        real.load_state_dict(twin.state_dict())
        expected = real({str(index): x for index, x in enumerate(maps)}).values()
        for one, other in zip(twin(maps), expected, strict=True):
            assert relative_error(one, other) < 1e-12


def test_upsampling_is_pytorchs_nearest():
    x = normal(1, 1, 5, 3).astype(np.float32)
    for size in ((10, 6), (9, 5), (5, 3), (20, 7)):
        expected = F.interpolate(torch.from_numpy(x), size, mode="nearest")
        np.testing.assert_array_equal(to_nchw(upsample(to_nhwc(x), size)), expected)


def test_it_starts_from_torchvisions_distribution():
    in_jax = convert.to_torch(lma_jax.FeaturePyramid((8,), 64, rngs=nnx.Rngs(0)))
    for weights in (lma_torch.FeaturePyramid((8,), 64).state_dict(), in_jax):
        for name, fan_in in (("inner_blocks.0.0", 8), ("layer_blocks.0.0", 9 * 64)):
            bound = (3 / fan_in) ** 0.5  # of a uniform distribution with variance 1 / fan_in
            largest = float(weights[f"{name}.weight"].abs().max())
            assert 0.95 * bound < largest <= bound
            assert not weights[f"{name}.bias"].any()


@pytest.mark.parametrize("package", [lma_jax, lma_torch])
def test_another_number_of_maps_is_refused(package):
    rngs = {"rngs": nnx.Rngs(0)} if package is lma_jax else {}
    with pytest.raises(ValueError, match="the pyramid was built for 2 maps, got 3"):
        package.FeaturePyramid((8, 8), 4, **rngs)([None, None, None])
