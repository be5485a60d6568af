"""Weights of other origins become checkpoints; bad files are refused in one line each."""

import errno
import io
import json
import math
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convert
import lma_torch
from convert.importing import import_weights
from lma_jax.checkpoint.format import load_checkpoint
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.checkpoint.restore import restore_model
from lma_jax.errors import UserError
from lma_jax.preprocessing import IMAGENET
from lma_jax.weight_files import to_array, write_weights
from tests.helpers.commands import fail, run
from tests.helpers.pairs import golden_pair, know_resnet10, register_resnet10

pytestmark = pytest.mark.deep


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    register_resnet10(monkeypatch)


@pytest.mark.parametrize(("name", "suffix"), [("resnet10_lma", ".pth"), ("mobilenetv2", ".safetensors")])
def test_imported_weights_are_a_checkpoint(name, suffix, tmp_path):
    _, torch_model = golden_pair(name)
    weights = torch_model.state_dict()
    preprocessing = dict(image_size=96, resize_size=100, mean=[0.1] * 3, std=[0.2] * 3)
    class_names = [f"class {number}" for number in range(1000)]
    described = {"preprocessing": preprocessing, "class_names": class_names}
    write_weights(tmp_path / f"weights{suffix}", {key: to_array(value) for key, value in weights.items()}, described)
    said = import_weights(tmp_path / f"weights{suffix}", tmp_path / "run")
    assert f"{name} with 1,000 classes" in said
    checkpoint = load_checkpoint(tmp_path / "run")
    assert json.loads(json.dumps(vars(checkpoint.metadata.preprocessing))) == preprocessing
    assert checkpoint.metadata.class_names == tuple(class_names)
    assert checkpoint.metadata.imported_from == str(tmp_path / f"weights{suffix}")
    returned = convert.to_torch(restore_model(checkpoint))
    assert all(torch.equal(returned[key], weights[key]) for key in returned)
    with pytest.raises(UserError, match="exists already"):
        import_weights(tmp_path / f"weights{suffix}", tmp_path / "run")


def full_disk(self, *arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("save", [full_disk, lambda self, *arguments, **options: None], ids=["raises", "is lost"])
def test_an_import_that_fails_leaves_nothing_behind_and_can_be_repeated(save, tmp_path, monkeypatch):
    _, torch_model = golden_pair("resnet10", num_classes=4)
    arrays = {key: to_array(value) for key, value in torch_model.state_dict().items()}
    write_weights(tmp_path / "weights.safetensors", arrays, {})
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(UserError, match=r"cannot write to .*run( |:|$)"):
            import_weights(tmp_path / "weights.safetensors", tmp_path / "new/run")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    import_weights(tmp_path / "weights.safetensors", tmp_path / "new/run")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run"]
    assert load_checkpoint(tmp_path / "new/run").metadata.num_classes == 4


def test_a_workdir_that_cannot_be_made_is_told_before_the_weights_are_read(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name, expected in (("file", "exists already"), ("link", "exists already"), ("file/run", "cannot write")):
        with pytest.raises(UserError, match=expected):
            import_weights(tmp_path / "missing.pth", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    "described",
    [{}, {"preprocessing": {"image_size": 96}, "class_names": ["one"]}, {"preprocessing": 3, "class_names": "five"}],
)
def test_without_usable_metadata_the_images_are_imagenets_and_the_classes_have_no_names(described, tmp_path):
    _, torch_model = golden_pair("resnet10", num_classes=4)
    weights = {key: to_array(value) for key, value in torch_model.state_dict().items()}
    write_weights(tmp_path / "weights.safetensors", weights, described)
    import_weights(tmp_path / "weights.safetensors", tmp_path / "run")
    metadata = load_checkpoint(tmp_path / "run").metadata
    assert metadata.preprocessing == IMAGENET
    assert (metadata.num_classes, metadata.class_names) == (4, None)


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
GOOD_PTH = saved(lma_torch.create_model("resnet18", num_classes=2, width=8).state_dict())
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
    "other_network.pth": (saved(TENSOR), "the closest is"),
    "pickle.pth": (pickle.dumps({"a": 1}), "cannot"),
    "empty.safetensors": (b"", "cannot read"),
    "cut_header.safetensors": (safetensors(b'{"a":', size=100), "cannot read"),
    "huge_header.safetensors": (safetensors(b"{}", size=2**62), "cannot read"),
    "no_json.safetensors": (safetensors(b"not json at all"), "cannot read"),
    "cut_data.safetensors": (safetensors(json.dumps({"a": ENTRY}).encode(), bytes(8)), "cannot read"),
    "overlap.safetensors": (safetensors(json.dumps({"a": ENTRY, "b": ENTRY}).encode(), bytes(24)), "cannot read"),
    "mislabelled.safetensors": (GOOD_PTH, "cannot read"),
    "other.safetensors": (safetensors(json.dumps({"a": ENTRY}).encode(), bytes(24)), "the closest is"),
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


def narrow_weights() -> dict[str, np.ndarray]:
    state_dict = lma_torch.create_model("resnet10", num_classes=2).state_dict()
    return {key: to_array(value) for key, value in state_dict.items()}


def altered(key: str, value) -> dict[str, np.ndarray]:
    weights = narrow_weights()
    return {**weights, key: value(weights[key].copy())}


def with_first(value: float):
    def alter(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return alter


ALTERED = {
    "NaN": ("fc.weight", with_first(np.nan), "fc.weight has values that are not finite"),
    "infinity": ("conv1.weight", with_first(-np.inf), "conv1.weight has values that are not finite"),
    "a negative variance": ("bn1.running_var", with_first(-0.1), "bn1.running_var has variances below zero"),
    "integers": ("fc.bias", lambda array: array.astype(np.int64), "fc.bias of int64"),
    "a scalar": ("fc.weight", lambda array: np.float32(1), "mis-shaped fc.weight ()"),
    "a vector": ("fc.weight", lambda array: array.reshape(-1), "mis-shaped fc.weight"),
    "one more axis": ("conv1.weight", lambda array: array[None], "mis-shaped conv1.weight"),
    "no classes": ("fc.weight", lambda array: array[:0], "fc.weight"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("case", ALTERED)
def test_values_and_shapes_that_no_network_has_are_refused(case, suffix, tmp_path):
    key, alter, expected = ALTERED[case]
    write_weights(tmp_path / f"weights{suffix}", altered(key, alter), {})
    with pytest.raises(UserError, match=rf"weights{suffix}.*{re.escape(expected)}"):
        import_weights(tmp_path / f"weights{suffix}", tmp_path / "run")
    assert not (tmp_path / "run").exists()


GOOD = dict(image_size=96, resize_size=100, mean=[0.1] * 3, std=[0.2] * 3)
METADATA: dict[str, dict] = {
    "a huge image": {"preprocessing": {**GOOD, "image_size": 10**9, "resize_size": 10**9}},
    "an image without pixels": {"preprocessing": {**GOOD, "image_size": 0}},
    "a size of another type": {"preprocessing": {**GOOD, "resize_size": "100"}},
    "a size that is true": {"preprocessing": {**GOOD, "image_size": True}},
    "two means": {"preprocessing": {**GOOD, "mean": [0.1] * 2}},
    "a mean that is no list": {"preprocessing": {**GOOD, "mean": 0.1}},
    "a mean that is NaN": {"preprocessing": {**GOOD, "mean": [0.1, 0.1, math.nan]}},
    "an infinite deviation": {"preprocessing": {**GOOD, "std": [math.inf] * 3}},
    "a deviation of zero": {"preprocessing": {**GOOD, "std": [0.0] * 3}},
    "a deviation of text": {"preprocessing": {**GOOD, "std": "abc"}},
    "classes that are no strings": {"class_names": [1, 2]},
    "a missing class": {"num_classes": 2, "class_names": ["cat"]},
    "another number of classes": {"num_classes": 3},
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_no_network_has_are_refused(case, tmp_path):
    write_weights(tmp_path / "weights.safetensors", narrow_weights(), METADATA[case])
    with pytest.raises(UserError, match=r"cannot use .*weights.safetensors: "):
        import_weights(tmp_path / "weights.safetensors", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_large_file_of_another_network_is_refused_before_it_is_read(tmp_path):
    entry = dict(dtype="F32", shape=[2**30, 16], data_offsets=[0, 2**36])
    path = tmp_path / "large.safetensors"
    path.write_bytes(safetensors(json.dumps({"fc.weight": entry}).encode()))
    os.truncate(path, path.stat().st_size + 2**36)
    with pytest.raises(UserError, match=r"mis-shaped fc\.weight"):
        import_weights(path, tmp_path / "run")


@pytest.mark.process
def test_the_command_imports_and_refuses(tmp_path):
    _, torch_model = golden_pair("resnet10_lma", num_classes=4)
    timm = {key.replace(".attention.", ".se."): value for key, value in torch_model.state_dict().items()}
    torch.save({"state_dict": timm}, tmp_path / "timm.pth")
    weights = f"--weights={tmp_path}/timm.pth"
    output = run("convert.to_jax", weights, f"--output={tmp_path}/run", setup=know_resnet10)
    assert "resnet10_lma with 4 classes" in output
    assert "exists already" in fail("convert.to_jax", weights, f"--output={tmp_path}/run", setup=know_resnet10)
    line = fail("convert.to_jax", weights, "--model=resnet50", f"--output={tmp_path}/other", setup=know_resnet10)
    assert "the weights are not those of resnet50" in line
    line = fail("convert.to_jax", weights, "--model=resnet8", f"--output={tmp_path}/other")
    assert "did you mean 'resnet18'" in line
    assert not (tmp_path / "other").exists()
