"""Weight files: both formats keep every value, and .safetensors needs no PyTorch."""

from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch

import lma_torch
from lma_jax.errors import UserError
from lma_jax.weight_files import read_weights, to_array, write_weights
from tests.helpers.commands import python
from tests.helpers.torch_tiny import TorchTiny

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_keeps_names_dtypes_values_and_metadata(suffix, tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 4))
    state_dict = {f"{np.dtype(dtype)}.weight": values.astype(dtype).T for dtype in DTYPES}
    state_dict["bn1.num_batches_tracked"] = np.array(3)
    described = {"model": "resnet18", "class_names": ["cat", "dog"], "metrics": {"val_top1": 70.0}, "step": 4}
    path = tmp_path / f"folder/weights{suffix}"
    write_weights(path, state_dict, described)
    found, metadata = read_weights(path)
    assert metadata == described
    assert found.keys() == state_dict.keys()
    for key, array in state_dict.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert found[key].tobytes() == array.tobytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_pth_file_is_a_state_dict_of_pytorch(tmp_path):
    model = TorchTiny().to(torch.bfloat16)
    write_weights(tmp_path / "tiny.pth", {key: to_array(value) for key, value in model.state_dict().items()}, {"a": 1})
    loaded = torch.load(tmp_path / "tiny.pth", weights_only=True)
    assert loaded.metadata == {"a": 1}
    other = TorchTiny().to(torch.bfloat16)
    other.load_state_dict(loaded)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}, "epoch": 90, "best_acc1": 78.0},
        lambda s: {"model": s, "optimizer": {"state": {}}, "lr_scheduler": {}},
        lambda s: {"model": {f"_orig_mod.module.{key}": value for key, value in s.items()}},
        lambda s: OrderedDict((f"model.{key}", value) for key, value in s.items()),
    ],
)
def test_wrappers_of_training_scripts_are_removed(wrap, tmp_path):
    state_dict = lma_torch.create_model("resnet18_lma", num_classes=3, width=8).state_dict()
    torch.save(wrap(state_dict), tmp_path / "weights.pth")
    found, _ = read_weights(tmp_path / "weights.pth")
    assert found.keys() == state_dict.keys()
    assert all(np.array_equal(found[key], state_dict[key].numpy()) for key in found)


def test_a_file_that_is_missing_or_has_another_suffix_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing.pth does not exist"):
        read_weights(tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"weights.bin must end in .safetensors or .pth"):
        write_weights(tmp_path / "weights.bin", {}, {})


WITHOUT = """
import sys
sys.modules["{package}"] = None  # importing it raises an ImportError, as if it were not installed
from pathlib import Path
from lma_jax.errors import UserError
from lma_jax.weight_files import read_weights, write_weights
folder = Path({folder!r})
"""


@pytest.mark.process
def test_without_pytorch_a_run_starts_from_safetensors_and_pth_says_what_is_missing(tmp_path):
    state_dict = {key: to_array(value) for key, value in TorchTiny().state_dict().items()}
    for suffix in (".safetensors", ".pth"):
        write_weights(tmp_path / f"tiny{suffix}", state_dict, {"model": "tiny_lma"})
    code = (
        WITHOUT.format(package="torch", folder=str(tmp_path))
        + """
import numpy as np
state_dict, metadata = read_weights(folder / "tiny.safetensors")
write_weights(folder / "again.safetensors", state_dict, metadata)
again, _ = read_weights(folder / "again.safetensors")
assert all(np.array_equal(again[key], state_dict[key]) for key in state_dict)
for attempt in (lambda: read_weights(folder / "tiny.pth"), lambda: write_weights(folder / "x.pth", state_dict, {})):
    try:
        attempt()
    except UserError as error:
        print(error)

from tests.helpers import tiny
from lma_jax.registry import BACKBONES, Backbone, in_resnet
from lma_jax.state_dict import to_state_dict
from lma_jax.training.initial import load_initial
BACKBONES["tiny"] = Backbone(tiny.Tiny, in_resnet)
run = tiny.Trial(init_from=str(folder / "again.safetensors"))
run.state, _ = load_initial(run.config, run.state)
started = to_state_dict(run.model())
assert all(np.array_equal(started[key], state_dict[key]) for key in state_dict)
"""
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == 2 * ["a .pth file needs PyTorch: pip install torch"]
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.process
def test_without_safetensors_an_error_says_what_is_missing(tmp_path):
    (tmp_path / "a.safetensors").touch()
    code = (
        WITHOUT.format(package="safetensors", folder=str(tmp_path))
        + """
try:
    read_weights(folder / "a.safetensors")
except UserError as error:
    print(error)
"""
    )
    process = python("-c", code)
    assert process.stdout == "a .safetensors file needs safetensors: pip install safetensors\n", process.stderr
