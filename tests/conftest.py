"""What the tests share: a session-wide compilation cache, float64, and weights that both frameworks can rebuild."""

import atexit
import gc
import os
import shutil
import tempfile
import zlib
from functools import cache
from unittest import mock

# Before jax is imported, and in the environment, so that subprocesses share the compiled programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-cache-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Four devices for the tests of sharding; and the tests compile much and compute little.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_llvm_disable_expensive_passes=true"
if "TFDS_DATA_DIR" not in os.environ:
    os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="tfds-")
    atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import lma_jax
import lma_jax.layers
import lma_torch
from lma_jax.attention import channel, mixed

torch.set_num_threads(1)  # its threads would spin against those of XLA
gc.set_threshold(200_000)  # tracing makes millions of objects that stay


@pytest.fixture
def x64():
    """JAX computes in float64 during the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def compile_each_layer_once():
    """Compiles a layer once for a shape, for all networks together; whole networks would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        attentions = (getattr(module, name) for module in (channel, mixed) for name in module.__all__)
        for layer in (nnx.Conv, lma_jax.layers.BatchNorm, lma_jax.layers.ReLU6, lma_jax.LMA, *attentions):
            patch.setattr(layer, "__call__", nnx.jit(layer.__call__))
        yield


def all_but_slow(fast, values) -> list:
    """Parameters of a test, those that are not in `fast` marked slow: they repeat what the others show."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def deep_ones_slow(names) -> list:
    """Names of networks as parameters of a test, the deep ones marked slow."""
    names = list(names)
    return all_but_slow([name for name in names if not name.startswith(("resnet34", "resnet101", "resnet152"))], names)


def relative_error(actual, expected, *, scale: float = 0.0) -> float:
    """The largest difference, relative to the largest expected value (or to `scale` where that is larger)."""
    actual, expected = (np.asarray(a.detach() if isinstance(a, torch.Tensor) else a) for a in (actual, expected))
    assert actual.shape == expected.shape
    scale = max(scale, np.abs(expected).max(initial=0))
    return float(np.abs(actual - expected).max(initial=0) / (scale or 1))


def golden_weights(module: torch.nn.Module, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """A float64 state_dict for `module` (it may lie on the meta device), drawn from the names alone."""
    weights = {}
    for name, tensor in module.state_dict().items():
        rng, shape = np.random.default_rng([seed, zlib.crc32(name.encode())]), tuple(tensor.shape)
        if name.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            value = rng.normal(0, 0.1, shape)
        elif len(shape) >= 2:
            value = rng.normal(0, 1, shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        weights[name] = torch.from_numpy(value)
    return weights


def well_conditioned_weights(model: torch.nn.Module, images: np.ndarray) -> dict[str, torch.Tensor]:
    """Weights that do not amplify rounding, however deep the network.

    Most units are active, and the running statistics are those of `images` (N, 3, H, W).
    """
    weights = golden_weights(model)
    for key in weights:
        if key.replace("bias", "running_var") in weights and key.endswith("bias"):
            weights[key] += 1
    model.load_state_dict(weights, assign=True)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.from_numpy(images))
    return model.state_dict()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal values in float64, drawn as the golden inputs are."""
    return np.random.default_rng([seed, 12345]).normal(size=shape)


def to_nhwc(array) -> jax.Array:
    return jnp.asarray(np.moveaxis(np.asarray(array), 1, -1))


def to_nchw(array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)


def host_options(name: str) -> dict:
    """Options that take the randomness out of training mode."""
    return {"dropout": 0.0} if name.startswith("mobilenetv2") else {}


@cache
def _traced_model(name: str, options: tuple) -> nnx.Module:
    # Shapes need no new key each time, and counting keys while tracing is quadratic in the depth.
    with mock.patch.object(nnx.RngStream, "__call__", lambda stream: stream.key[...]):
        return nnx.eval_shape(lambda: lma_jax.create_model(name, rngs=nnx.Rngs(0), **dict(options)))


def jax_shapes(name: str, **options) -> nnx.Module:
    """A lma_jax network of shapes without values (the counterpart of PyTorch's meta device), quick to build."""
    return nnx.clone(_traced_model(name, tuple(options.items())))


def torch_shapes(name: str, **options) -> torch.nn.Module:
    """A lma_torch network on the meta device."""
    return lma_torch.create_model(name, device="meta", **options)
