"""Exports: every format carries the metadata, and nothing is written that was not verified.

The programs themselves are run by tests/docs/test_recipes.py.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from safetensors import safe_open

import convert
import convert.export.program
import convert.parity
import lma_jax
import lma_torch
from convert.export import EXPORT, FORMATS, export, format_of
from convert.export.momentum import MOMENTUM, export_momentum
from convert.export.verified import VerifiedPair, verified_pair
from lma_jax.checkpoint.format import Checkpoint, Metadata, to_arrays
from lma_jax.definition import split
from lma_jax.errors import UserError
from lma_jax.overwriting import require_outputs
from lma_jax.weight_files import read_weights, write_weights
from tests.helpers.pairs import register_resnet10

CLASS_NAMES = ("cat", "dog", "cow")
PREPROCESSING = dict(image_size=17, resize_size=20, mean=[0.5] * 3, std=[0.2] * 3)


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        register_resnet10(patch)
        yield


@pytest.fixture(scope="module")
def checkpoint(small_network) -> Checkpoint:
    model = nnx.jit(lambda: lma_jax.create_model("resnet10_lma", num_classes=3, rngs=nnx.Rngs(0)))()
    _, params, batch_stats = split(model)
    tree = {"params": params, "batch_stats": batch_stats, "opt_state": [{"trace": params}]}
    metadata = Metadata("resnet10_lma", 3, CLASS_NAMES, config=PREPROCESSING, metrics={"val_top1": 90.0})
    return Checkpoint(7, to_arrays(tree), metadata)


@pytest.fixture(scope="module")
def pair(checkpoint) -> VerifiedPair:
    return verified_pair(checkpoint, source="runs/r10")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_export_of_weights_loads_in_pytorch_and_describes_itself(pair, suffix, tmp_path):
    path = tmp_path / f"network{suffix}"
    assert (
        export(pair, path)
        == f"resnet10_lma written to {path}; 40 layers and the logits are the same in both frameworks"
    )
    if suffix == ".pth":
        state_dict = torch.load(path, weights_only=True)
        metadata = state_dict.metadata
        assert len(state_dict.digest) == 64
    else:
        with safe_open(path, "pt") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = {name: json.loads(value) for name, value in file.metadata().items()}
            assert len(metadata.pop("digest")) == 64
    lma_torch.create_model("resnet10_lma", num_classes=3).load_state_dict(state_dict, strict=True)
    expected = convert.to_torch(pair.jax_model)
    assert all(torch.equal(state_dict[key], expected[key]) for key in expected)
    assert list(metadata["class_names"]) == list(CLASS_NAMES)
    described = dict(model="resnet10_lma", num_classes=3, metrics={"val_top1": 90.0}, checkpoint="runs/r10", step=7)
    assert metadata.items() >= {**described, "preprocessing": PREPROCESSING}.items()
    assert metadata["verified"]["float64"]["passed"] == metadata["verified"]["float64"]["layers"] == 41
    assert "layer1.0.attention.conv_h" in metadata["verified"]["not_verified"]
    assert metadata == read_weights(path)[1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_export_may_replace_another_but_neither_momentum_nor_other_weights(checkpoint, pair, suffix, tmp_path):
    exported, momentum, other = (tmp_path / f"{name}{suffix}" for name in ("exported", "momentum", "other"))
    export(pair, exported)
    export_momentum(checkpoint, momentum)
    write_weights(other, {"fc.bias": np.zeros(3, np.float32)}, {})
    require_outputs({"output": (exported, EXPORT), "momentum": (momentum, MOMENTUM)}, force=False)
    for path, kind in ((momentum, EXPORT), (other, EXPORT), (exported, MOMENTUM), (other, MOMENTUM)):
        with pytest.raises(UserError, match=r"--output=.* exists and is no file of this kind"):
            require_outputs({"output": (path, kind)}, force=False)


def test_a_program_may_replace_another(pair, tmp_path):
    for _ in range(2):
        require_outputs({"output": (tmp_path / "network.stablehlo", EXPORT)}, force=False)
        export(pair, tmp_path / "network.stablehlo")


def test_every_format_belongs_to_one_command():
    for suffix, row in FORMATS.items():
        assert format_of(Path(f"network{suffix}"), framework=row.framework) is row
        other = {"torch": "jax", "jax": "torch"}[row.framework]
        with pytest.raises(UserError, match=rf"network{suffix} must end in \."):
            format_of(Path(f"network{suffix}"), framework=other)
    with pytest.raises(UserError, match=r"must end in .safetensors or .pth or .pt2 or .onnx or .stablehlo"):
        format_of(Path("network.bin"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_not_folded(pair, suffix, tmp_path):
    with pytest.raises(UserError, match="folded in programs only"):
        export(pair, tmp_path / f"network{suffix}", fold=True)
    assert list(tmp_path.iterdir()) == []


def test_networks_that_differ_are_not_exported(checkpoint, monkeypatch):
    def damaged(model: nnx.Module) -> dict[str, torch.Tensor]:
        state_dict = convert.to_torch(model)
        state_dict["layer2.0.bn1.bias"][0] += 0.1
        return state_dict

    monkeypatch.setattr("convert.pair.to_torch", damaged)
    with pytest.raises(ArithmeticError, match=r"float64 .*the first that failed is layer2.0.bn1"):
        verified_pair(checkpoint, source="runs/r10")


def other_program(logits: np.ndarray, images: np.ndarray) -> np.ndarray:
    return logits


def test_a_program_that_differs_is_not_exported(pair):
    with torch.no_grad():
        logits = pair.torch_model.eval()(convert.export.program.nchw(pair.images[:1].astype(np.float32))).numpy()
    metadata = convert.export.program.checked_metadata(pair, partial(other_program, logits), fold=True)
    assert metadata["batch_norm_folded"] is True
    assert metadata["program"] == {"relative": 0.0, "tolerance": 1e-5}
    for wrong in (logits + np.abs(logits).max() * 2e-5, logits * np.nan):
        with pytest.raises(ArithmeticError, match="1e-05 are allowed"):
            convert.export.program.checked_metadata(pair, partial(other_program, wrong), fold=False)


@pytest.mark.parametrize(
    ("suffix", "package", "expected"),
    [
        ("onnx", "onnxruntime", "ONNX needs onnxruntime: pip install"),
        ("stablehlo", "flatbuffers", "needs flatbuffers: pip install flatbuffers"),
    ],
)
def test_an_export_says_which_package_is_missing(suffix, package, expected, pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=expected):
        export(pair, tmp_path / f"network.{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_momentum_is_refused_where_it_is_not_that_of_the_exported_weights(checkpoint, tmp_path):
    arrays = checkpoint.arrays
    average = {f"ema/{path}": array for path, array in arrays.items() if path.startswith(("params/", "batch_stats/"))}
    with pytest.raises(UserError, match="momentum belongs to the weights"):
        export_momentum(replace(checkpoint, arrays={**arrays, **average}), tmp_path / "momentum.pth")
    none = {path: array for path, array in arrays.items() if not path.startswith("opt_state/")}
    adamw = replace(checkpoint.metadata, config={**PREPROCESSING, "optimizer": "adamw"})
    with pytest.raises(UserError, match=r"checkpoint 7 holds no momentum of SGD: its config\.optimizer is adamw"):
        export_momentum(replace(checkpoint, arrays=none, metadata=adamw), tmp_path / "momentum.pth")
    with pytest.raises(UserError, match=r"must end in .safetensors or .pth"):
        export_momentum(checkpoint, tmp_path / "momentum.onnx")
    assert list(tmp_path.iterdir()) == []


def test_momentum_is_that_of_the_checkpoint(checkpoint, pair, tmp_path):
    assert "momentum of step 7 written" in export_momentum(checkpoint, tmp_path / "momentum.safetensors")
    momentum, metadata = read_weights(tmp_path / "momentum.safetensors")
    assert metadata == {"model": "resnet10_lma", "num_classes": 3, "step": 7}
    parameters = dict(pair.torch_model.named_parameters())
    assert momentum.keys() == parameters.keys()
    assert all(np.array_equal(momentum[name], weight.detach()) for name, weight in parameters.items())


def test_momentum_of_a_frozen_parameter_is_zero_and_a_missing_one_is_an_error(checkpoint, tmp_path):
    arrays = {path: array for path, array in checkpoint.arrays.items() if not path.endswith("trace/conv1/kernel")}
    with pytest.raises(UserError, match="missing conv1/kernel"):
        export_momentum(replace(checkpoint, arrays=arrays), tmp_path / "momentum.pth")
    frozen = replace(checkpoint.metadata, config={**PREPROCESSING, "freeze": ["conv1.*"]})
    export_momentum(replace(checkpoint, arrays=arrays, metadata=frozen), tmp_path / "momentum.pth")
    momentum, _ = read_weights(tmp_path / "momentum.pth")
    assert not momentum["conv1.weight"].any()
    assert momentum["fc.weight"].any()
