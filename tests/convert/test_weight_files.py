"""Weights from elsewhere: recognised, renamed and imported; and bad files, each refused in one line."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from convert.files import read_weights, write_weights
from convert.importer import import_weights
from convert.origins import recognise, unwrap
from safetensors.torch import save_file

import convert
import lma_torch
from helpers.commands import fail, run
from helpers.marks import deep_ones_slow
from helpers.shapes import jax_shapes, torch_shapes
from helpers.weights import golden_weights
from lma_jax.checkpoint.format import load_checkpoint
from lma_jax.checkpoint.restore import restore_model
from lma_jax.errors import UserError

BACKBONES = [name for name in lma_torch.list_models() if "_" not in name]
LMA_HOSTS = [name for name in lma_torch.list_models() if name.endswith("_lma")]


def meta(name: str, **options) -> dict[str, torch.Tensor]:
    return torch_shapes(name, **options).state_dict()


def to_timm(state_dict):
    """timm's ResNets hold the attention of a block as `se`."""
    return {key.replace(".attention.", ".se."): value for key, value in state_dict.items()}


def torchvision_resnet_names(depths: tuple[int, ...], convs: int) -> set[str]:
    """The parameter names of torchvision's ResNets, written down from its documentation."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{leaf}" for leaf in norm)}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convs + 1):
                names |= {f"{prefix}.conv{number}.weight", *(f"{prefix}.bn{number}.{leaf}" for leaf in norm)}
            if block == 0 and (stage > 1 or convs == 3):
                names |= {f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{leaf}" for leaf in norm)}
    return names


@pytest.mark.parametrize(
    ("name", "depths", "convs"),
    [
        ("resnet18", (2, 2, 2, 2), 2),
        ("resnet34", (3, 4, 6, 3), 2),
        ("resnet50", (3, 4, 6, 3), 3),
        ("resnet101", (3, 4, 23, 3), 3),
        ("resnet152", (3, 8, 36, 3), 3),
    ],
)
def test_plain_resnets_have_torchvisions_names(name, depths, convs):
    assert set(meta(name)) == torchvision_resnet_names(depths, convs)


def test_plain_mobilenetv2_has_torchvisions_names():
    names = set(meta("mobilenetv2"))
    for name in (
        *("features.0.0.weight", "features.0.1.running_var", "features.1.conv.0.0.weight", "features.1.conv.1.weight"),
        *("features.1.conv.2.weight", "features.2.conv.0.0.weight", "features.2.conv.1.1.bias"),
        *("features.17.conv.2.weight", "features.17.conv.3.weight", "features.18.0.weight", "classifier.1.bias"),
    ):
        assert name in names


@pytest.mark.parametrize(
    "name", deep_ones_slow([*BACKBONES, *LMA_HOSTS, "resnet50_se", "resnet18_bam", "mobilenetv2_cbam"])
)
@pytest.mark.parametrize("wrap", [lambda s: s, to_timm], ids=["torchvision's and the authors' names", "timm's"])
def test_every_network_is_recognised(name, wrap):
    state_dict = wrap(meta(name, num_classes=21))
    assert recognise(unwrap(state_dict)) == (name, 21)
    assert recognise(unwrap(state_dict), name=name) == (name, 21)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}, "epoch": 90, "best_acc1": 78.0},
        lambda s: {"model": s, "optimizer": {"state": {}}, "lr_scheduler": {}},
        lambda s: {"model": {f"_orig_mod.module.{key}": value for key, value in s.items()}},
        lambda s: OrderedDict((f"model.{key}", value) for key, value in s.items()),
    ],
)
def test_what_training_scripts_wrap_around_weights_is_taken_off(wrap, tmp_path):
    state_dict = lma_torch.create_model("resnet18_lma", num_classes=3).state_dict()
    torch.save(wrap(state_dict), tmp_path / "weights.pth")
    found, _ = read_weights(tmp_path / "weights.pth")
    assert found.keys() == state_dict.keys()
    assert all(torch.equal(found[key], state_dict[key]) for key in found)


@pytest.mark.parametrize("host", deep_ones_slow(BACKBONES))
def test_what_does_not_fit_is_listed_whole(host):
    state_dict = meta(f"{host}_lma")
    taps = [key for key in state_dict if ".conv_h." in key or ".conv_w." in key]
    with pytest.raises(UserError) as error:
        recognise(state_dict, name=host)
    assert f"{len(taps)} differences" in str(error.value) or host == "mobilenetv2"
    assert all(f"unexpected {tap} " in str(error.value) for tap in taps)
    wrong = {**state_dict, "conv9.weight": torch.zeros(3), taps[0]: torch.zeros(1, 1, 1, 9)}
    del wrong[taps[1]]
    with pytest.raises(UserError, match=rf"nearest is {host}_lma, with 3 differences: missing {taps[1]}") as error:
        recognise(wrong)
    assert "unexpected conv9.weight (3,)" in str(error.value)
    assert f"mis-shaped {taps[0]} (1, 1, 1, 9), not" in str(error.value)


@pytest.mark.parametrize(("name", "suffix"), [("resnet18_lma", ".pth"), ("mobilenetv2", ".safetensors")])
def test_imported_weights_are_a_checkpoint(name, suffix, tmp_path):
    weights = golden_weights(torch_shapes(name))
    weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    preprocessing = dict(image_size=96, resize_size=100, mean=[0.1] * 3, std=[0.2] * 3)
    write_weights(tmp_path / f"weights{suffix}", weights, {"preprocessing": preprocessing})
    said = import_weights(tmp_path / f"weights{suffix}", tmp_path / "run")
    assert f"{name} with 1,000 classes" in said
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.metadata["preprocessing"] == preprocessing
    returned = convert.to_torch(restore_model(checkpoint))
    assert all(torch.equal(returned[key], weights[key]) for key in returned)
    with pytest.raises(UserError, match="exists already"):
        import_weights(tmp_path / f"weights{suffix}", tmp_path / "run")


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def safetensors(header: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


TENSOR = {"fc.weight": torch.zeros(2, 3)}
ENTRY = dict(dtype="F32", shape=[2, 3], data_offsets=[0, 24])
GOOD_PTH = saved(lma_torch.create_model("resnet18", num_classes=2).state_dict())
BAD_FILES = {
    "empty.pth": (b"", "cannot read"),
    "text.pth": (b"hello, these are no weights\n", "cannot read"),
    "html.pth": (b"<!DOCTYPE html><html>404</html>", "cannot read"),
    "cut.pth": (GOOD_PTH[:-3000], "cannot read"),
    "head.pth": (GOOD_PTH[:200], "cannot read"),
    "empty_zip.pth": (zipped({}), "cannot read"),
    "foreign_zip.pth": (zipped({"readme.txt": b"hello"}), "cannot read"),
    "numbers.pth": (saved({"a": 1, "b": [2, 3]}), "holds no state_dict"),
    "list.pth": (saved([torch.zeros(3)]), "holds no state_dict"),
    "tensor.pth": (saved(torch.zeros(3)), "holds no state_dict"),
    "nothing.pth": (saved({}), "holds no state_dict"),
    "whole_model.pth": (saved(torch.nn.Linear(2, 3)), "needs the code of torch.nn.modules.linear.Linear"),
    "optimizer_only.pth": (saved({"state_dict": {}, "optimizer": {}}), "holds no state_dict"),
    "other_network.pth": (saved(TENSOR), "the nearest is"),
    "pickle.pth": (pickle.dumps({"a": 1}), "cannot"),
    "empty.safetensors": (b"", "cannot read"),
    "cut_header.safetensors": (safetensors(b'{"a":', size=100), "cannot read"),
    "huge_header.safetensors": (safetensors(b"{}", size=2**62), "cannot read"),
    "no_json.safetensors": (safetensors(b"not json at all"), "cannot read"),
    "cut_data.safetensors": (safetensors(json.dumps({"a": ENTRY}).encode(), bytes(8)), "cannot read"),
    "overlap.safetensors": (safetensors(json.dumps({"a": ENTRY, "b": ENTRY}).encode(), bytes(24)), "cannot read"),
    "mislabelled.safetensors": (GOOD_PTH, "cannot read"),
    "other.safetensors": (safetensors(json.dumps({"a": ENTRY}).encode(), bytes(24)), "the nearest is"),
    "none.safetensors": (safetensors(b"{}"), "holds no state_dict"),
    "weights.bin": (GOOD_PTH, "must end in .safetensors or .pth"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_and_nothing_is_written(name, tmp_path):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        import_weights(tmp_path / name, tmp_path / "run")
    assert name in str(error.value)
    assert expected in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_with_the_reason_and_never_run(legacy, tmp_path):
    target = tmp_path / "executed"
    content = {"state_dict": TENSOR, "extra": Malicious(target)}
    (tmp_path / "evil.pth").write_bytes(saved(content, _use_new_zipfile_serialization=not legacy))
    with pytest.raises(UserError, match=r"evil.pth: it needs the code of \w+.mkdir to load; save the state_dict"):
        import_weights(tmp_path / "evil.pth", tmp_path / "run")
    assert not target.exists()
    assert not (tmp_path / "run").exists()


def test_the_command_imports_and_refuses(tmp_path):
    model = lma_torch.create_model("resnet18_lma", num_classes=4)
    torch.save({"state_dict": to_timm(model.state_dict())}, tmp_path / "timm.pth")
    output = run("convert.to_jax", f"--weights={tmp_path}/timm.pth", f"--output={tmp_path}/run")
    assert "resnet18_lma with 4 classes" in output
    assert "exists already" in fail("convert.to_jax", f"--weights={tmp_path}/timm.pth", f"--output={tmp_path}/run")
    line = fail("convert.to_jax", f"--weights={tmp_path}/timm.pth", "--model=resnet50", f"--output={tmp_path}/other")
    assert "these are no weights of resnet50" in line
    assert "did you mean 'resnet18'" in fail(
        "convert.to_jax", f"--weights={tmp_path}/timm.pth", "--model=resnet8", f"--output={tmp_path}/other"
    )
    assert not (tmp_path / "other").exists()


def test_safetensors_of_other_programs_need_no_metadata_of_ours(tmp_path):
    save_file(lma_torch.create_model("resnet18").state_dict(), tmp_path / "hub.safetensors", {"format": "pt"})
    state_dict, metadata = read_weights(tmp_path / "hub.safetensors")
    assert metadata == {}
    assert recognise(state_dict) == ("resnet18", 1000)
    np.testing.assert_array_equal(jax_shapes("resnet18").fc.kernel.shape, tuple(state_dict["fc.weight"].shape)[::-1])
