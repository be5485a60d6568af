"""The environment of the tests, a compilation cache, and the fixtures that several rooms use."""

import atexit
import ctypes
import functools
import gc
import os
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

# In the environment before JAX is imported, so that subprocesses are set up alike and share the compiled programs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / f".cache/jaxlib-{version('jaxlib')}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# The tests compile much and compute little.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"  # for the tests of sharding
if Version(version("jaxlib")) < Version("0.11"):  # later ones have the newer emitters alone, which take twice the time
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
if "TFDS_DATA_DIR" not in os.environ:
    os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="tfds-")
    atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, settings

import lma_jax
import lma_jax.layers
import lma_jax.profiles
from lma_jax.attention import channel, mixed
from lma_jax.checkpoint import lock

# It hides packages where it is imported, which is meant for the process that commands are forked from.
collect_ignore = ["helpers/preload.py"]

# Under nohup or in the background of a script, these two are ignored, also by the commands that tests start and stop.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# The fuzzers: the same cases in every run, a few seconds of them; by hand HYPOTHESIS_PROFILE=long, with new ones.
_fuzzing: dict[str, Any] = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.register_profile("short", max_examples=150, derandomize=True, **_fuzzing)
settings.register_profile("long", max_examples=20_000, **_fuzzing)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

torch.set_num_threads(1)  # its threads would spin against those of XLA
gc.set_threshold(200_000)  # tracing makes millions of objects that stay


@pytest.fixture(scope="module", autouse=True)
def release_memory():
    """Forgets the compiled programs after a module if they fill gigabytes."""
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > 2e9:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def the_process_as_it_was():
    """What a test or a fixture leaves behind in the process would fail, or excuse, another test of the worker."""
    assert _left_behind() == []
    yield
    assert _left_behind() == []


def _left_behind() -> list[str]:
    states = {
        "gradients of PyTorch are off": not torch.is_grad_enabled(),
        "PyTorch's default type": torch.get_default_dtype() != torch.float32,
        "float64 in JAX": jnp.result_type(float) != jnp.float32,
        "optimised programs": not jax.config.read("jax_disable_most_optimizations"),
        "workdirs that are held": bool(lock._held),
    }
    return [state for state, present in states.items() if present]


@pytest.fixture
def x64():
    """JAX computes in float64 during the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised():
    """Turns XLA's optimisations on, for tests whose programs would run too slowly without them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@functools.cache
def compiled_layers() -> list[tuple[type, Any]]:
    """The layers, and their calls compiled; made once, so that all modules share the programs."""
    attentions = (getattr(module, name) for module in (channel, mixed) for name in module.__all__)
    layers = (nnx.Conv, lma_jax.layers.BatchNorm, lma_jax.layers.ReLU6, lma_jax.LMA, *attentions)
    return [(layer, nnx.jit(layer.__call__)) for layer in layers]


compiled_affine = nnx.jit(lma_jax.layers.BatchNorm.affine)
compiled_gated = jax.jit(lma_jax.profiles.gated)


@pytest.fixture(scope="module")
def compile_each_layer_once():
    """Compiles a layer once for a shape, for all networks together; whole networks would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        for layer, call in compiled_layers():
            patch.setattr(layer, "__call__", call)
        # Compiled as well, so that a block rounds as these layers do.
        patch.setattr(lma_jax.layers.BatchNorm, "affine", compiled_affine)
        patch.setattr(lma_jax.profiles, "gated", compiled_gated)
        yield
