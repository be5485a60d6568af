"""What the tests share: a session-wide compilation cache, float64, and weights that both frameworks can rebuild."""

import atexit
import gc
import os
import shutil
import tempfile

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
import pytest
import torch
from flax import nnx

import lma_jax
import lma_jax.layers
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
