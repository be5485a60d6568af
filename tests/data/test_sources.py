"""Data sets as sources of encoded images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lma_jax.data.digits import Digits
from lma_jax.data.sources import open_source
from lma_jax.errors import UserError
from lma_jax.images import decode
from tests.helpers.images import encode


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with a build of the digits, for copies."""
    folder = tmp_path_factory.mktemp("digits")
    open_source("digits", "train", data_dir=str(folder))
    return folder


def test_digits_are_split_without_overlap_into_every_class():
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    assert train.class_names == test.class_names == tuple("0123456789")
    for source in (train, test):
        assert {source.records[index]["label"] for index in range(len(source))} == set(range(10))


def test_digits_may_be_built_by_two_processes_at_once(digits, tmp_path, monkeypatch):
    generate = Digits._generate_examples

    def generate_while_another_one_ends(self, held_out):
        shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
        return generate(self, held_out)

    monkeypatch.setattr(Digits, "_generate_examples", generate_while_another_one_ends)
    assert len(open_source("digits", "train", data_dir=str(tmp_path))) == 1437


def test_a_missing_dataset_says_how_to_prepare_it(tmp_path):
    with pytest.raises(UserError, match=r"imagenet2012.*python -m lma_jax.data.prepare --archives="):
        open_source("imagenet2012", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"tfds build cifar10 --file_format=array_record"):
        open_source("cifar10", "train", data_dir=str(tmp_path))


def test_an_unknown_dataset_and_split_are_named(tmp_path):
    with pytest.raises(UserError, match="no data set 'imagenot'"):
        open_source("imagenot", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"no split 'validation'; it has .*test"):
        open_source("digits", "validation")


def test_a_damaged_dataset_is_refused(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "copy")
    (file,) = tmp_path.rglob("*train.array_record*")
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(UserError, match=r"train.array_record.* holds 0 of 1,437 examples"):
        open_source("digits", "train", data_dir=str(tmp_path / "copy"))


def test_a_build_without_random_access_says_how_to_convert_it(digits, tmp_path):
    (metadata,) = digits.rglob("dataset_info.json")
    info = json.loads(metadata.read_text())
    target = tmp_path / "mine/1.0.0"
    shutil.copytree(metadata.parent, target)
    (target / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord", "name": "mine"}))
    with pytest.raises(UserError, match=rf"has the format tfrecord.*convert_format --dataset_version_dir={target}"):
        open_source("mine", "train", data_dir=str(tmp_path))


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        for number in numbers:
            file = tmp_path / split / ("cat", "dog", "emu")[number % 3] / f"{number}.{('JPEG', 'png')[number % 2]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(Image.new("RGB", (9, 9), (number,) * 3)))
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    return tmp_path


def test_an_image_folder_is_a_source(folder):
    train, val = (open_source("folder", split, data_dir=str(folder)) for split in ("train", "validation"))
    assert (len(train), len(val), train.num_classes, val.num_classes) == (6, 3, 3, 3)
    assert train.class_names == val.class_names == ("cat", "dog", "emu")
    records = [train.records[index] for index in range(6)]
    assert [record["label"] for record in records] == [0, 0, 1, 1, 2, 2]
    assert [record["file_name"] for record in records[:3]] == ["cat/0.JPEG", "cat/3.png", "dog/1.png"]
    assert np.asarray(decode(records[1]["image"]))[0, 0, 0] == 3


def test_a_folder_without_classes_or_images_is_refused(folder):
    with pytest.raises(UserError, match=r"missing/train does not exist.*<data_dir>/<split>/<class>/\*"):
        open_source("folder", "train", data_dir=str(folder / "missing"))
    with pytest.raises(UserError, match="train/cat must be a folder that holds a folder of images for each class"):
        open_source("folder", "cat", data_dir=str(folder / "train"))
    (folder / "train/fox").mkdir()
    with pytest.raises(UserError, match=r"class folder .*train/fox holds no images"):
        open_source("folder", "train", data_dir=str(folder))
