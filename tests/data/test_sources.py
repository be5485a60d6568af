"""Data sets as sources of encoded images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lma_jax.data.building import build
from lma_jax.data.digits import Digits
from lma_jax.data.indexing import index_folder
from lma_jax.data.sources import changes, open_source
from lma_jax.errors import UserError
from lma_jax.images import BadImageError, decode
from tests.helpers.datasets import flowers, write_folder
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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with a build of the flowers, for copies."""
    root = tmp_path_factory.mktemp("flowers")
    build(index_folder(write_folder(root / "images", flowers())), root / "builds/flowers/1.0.0")
    return root / "builds"


def damaged(builds: Path, copy: Path, file: str, content: str | bytes | None) -> str:
    """The data_dir of a copy, one of whose files has another content or is missing."""
    shutil.copytree(builds, copy)
    (path,) = copy.rglob(file)
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(copy)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "label.labels.txt"])
@pytest.mark.parametrize("content", [None, "", "{}", "[" * 100_000, "null", '"x"', '{"splits": 3}', b"aster\xff"])
def test_a_damaged_description_of_a_build_is_refused(prepared, tmp_path, file, content):
    data_dir = damaged(prepared, tmp_path / "copy", file, content)
    with pytest.raises(UserError, match=r"^data set 'flowers' in .* is damaged .*[^\n]*prepare the data set again$"):
        open_source("flowers", "train", data_dir=data_dir)


@pytest.mark.parametrize("names", ["tulip rose aster", "aster rose", "aster rose tulip x", "aster tose tulip", "a a a"])
def test_classes_of_a_build_with_other_names_are_refused(prepared, tmp_path, names):
    """TFDS takes what it finds, and calls the classes 0, 1, ... where it finds nothing that fits."""
    data_dir = damaged(prepared, tmp_path / "copy", "label.labels.txt", names.replace(" ", "\n"))
    with pytest.raises(UserError, match=r"label.labels.txt does not hold the 3 classes"):
        open_source("flowers", "train", data_dir=data_dir)
    (info,) = (tmp_path / "copy").rglob("dataset_info.json")
    info.write_text(info.read_text().replace("classes, digest", ""))  # a build of another program
    if len(names.split()) != 3 or "a a" in names:
        with pytest.raises(UserError, match=r"label.labels.txt does not name 3 classes"):
            open_source("flowers", "train", data_dir=data_dir)


@pytest.mark.parametrize("lengths", [[], ["0"], ["-5"], ["3", "4"], ["8"]])
def test_other_counts_of_examples_are_refused(prepared, tmp_path, lengths):
    (info,) = prepared.rglob("dataset_info.json")
    content = json.loads(info.read_text())
    for split in content["splits"]:
        split["shardLengths"] = lengths
    data_dir = damaged(prepared, tmp_path / "copy", "dataset_info.json", json.dumps(content))
    with pytest.raises(UserError, match=r"damaged: .*(Prepare|prepare) the data set again"):
        open_source("flowers", "train", data_dir=data_dir)


def test_a_damaged_record_is_a_bad_image(digits, tmp_path):
    (file,) = digits.rglob("*test.array_record*")
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    source = open_source("digits", "test", data_dir=damaged(digits, tmp_path / "copy", file.name, bytes(content)))
    with pytest.raises(BadImageError, match="its record in the build is damaged: Corrupted"):
        [source.records[index] for index in range(len(source))]


def test_a_label_that_is_no_class_is_a_bad_image(digits):
    records = open_source("digits", "test", data_dir=str(digits)).records
    records.class_names = records.class_names[:5]  # type: ignore[attr-defined]
    with pytest.raises(BadImageError, match=r"its label [5-9] is none of the 5 classes"):
        [records[index] for index in range(10)]


def test_a_data_dir_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not UTF-8, which TFDS needs"):
        open_source("digits", "train", data_dir=str(tmp_path / "\udcff"))


def test_a_build_is_identified_wherever_it_lies(digits, prepared, tmp_path):
    def identity(data_dir: Path, name: str = "flowers") -> dict[str, str]:
        return dict(open_source(name, "train", data_dir=str(data_dir)).identity())

    shutil.copytree(prepared, tmp_path / "copy")
    assert changes(identity(prepared), identity(tmp_path / "copy")) == []
    images = flowers()
    for name in [name for name in images if "rose" in name]:
        images[name.replace("rose", "zinnia")] = images.pop(name)
    images["train/aster/new.png"] = images["train/rose/a.png".replace("rose", "zinnia")]
    build(index_folder(write_folder(tmp_path / "images", images)), tmp_path / "other/flowers/1.0.0")
    found = changes(identity(tmp_path / "other"), identity(prepared))
    assert found[:2] == ["class 1: tulip (checkpoint: rose)", "class 2: zinnia (checkpoint: tulip)"]
    assert found[2:] == ["examples: 8 (checkpoint: 7)", "1 more"]
    assert "build: digits/1.0.0 (checkpoint: flowers/1.0.0)" in changes(identity(digits, "digits"), identity(prepared))


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


def test_an_image_folder_is_identified_by_names_and_sizes(folder, tmp_path):
    def identity() -> dict[str, str]:
        return dict(open_source("folder", "train", data_dir=str(folder)).identity())

    before = identity()
    assert list(before) == ["'cat'", "'dog'", "'emu'"]
    assert before["'cat'"].startswith("2 images, digest ")
    (folder / "train/cat/notes.txt").write_text("other notes")
    (folder / "train/cat/0.JPEG").touch()
    assert identity() == before
    cat = folder / "train/cat"
    steps = [
        lambda: (cat / "0.JPEG").write_bytes(b"another size"),
        lambda: (cat / "0.JPEG").rename(cat / "00.JPEG"),
        lambda: shutil.copy(cat / "3.png", cat / "4.png"),
        lambda: (cat / "3.png").rename(folder / "train/dog/3.png"),
        lambda: cat.rename(folder / "train/yak"),
    ]
    for step in steps:
        previous = identity()
        step()
        assert any("cat" in change for change in changes(identity(), previous))
    assert changes({}, before) == changes(before, {}) == []
    assert changes(identity(), before)[0].startswith("'cat': missing (checkpoint: 2 images, digest ")
