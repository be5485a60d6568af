"""Builds, read back by TFDS."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils

from lma_jax.data import building
from lma_jax.data.building import build, build_features
from lma_jax.data.indexing import Index, index_archives, index_folder
from lma_jax.data.sources import open_source
from lma_jax.errors import UserError
from tests.helpers.datasets import (
    ANSWERS,
    CMYK,
    DISGUISED_PNG,
    contents,
    flowers,
    imagenet_images,
    smooth,
    tar,
    write_archives,
    write_folder,
)

SPLITS = ("train", "validation")


@pytest.fixture
def archives(tmp_path) -> Path:
    write_archives(tmp_path / "archives")
    return tmp_path / "archives"


def pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"), np.int32)


def read(data_dir: Path, name: str, split: str) -> list[dict]:
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.data_source(name, split=split, data_dir=data_dir, decoders=decoders))


def shard_files(data_dir: Path) -> dict[str, Path]:
    return {path.name: path for path in data_dir.rglob("*array_record-*-of-*")}


def count(file: os.PathLike) -> int:
    return ArrayRecordReader(os.fspath(file)).num_records()


@pytest.fixture
def small_shards(monkeypatch):
    """The images of these tests fill several shards."""
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 1200)


def build_imagenet(archives: Path, data_dir: Path, **options) -> Path:
    folder = data_dir / "imagenet2012" / "5.1.0"
    build(index_archives(archives, partial=True), folder, **options)
    return folder


def test_imagenet_keeps_every_image_name_and_label(archives, tmp_path, small_shards):
    build_imagenet(archives, tmp_path, threads=3)
    labels = tfds.builder("imagenet2012", data_dir=tmp_path).info.features["label"]
    for split, images in imagenet_images().items():
        examples = {example["file_name"].decode(): example for example in read(tmp_path, "imagenet2012", split)}
        assert examples.keys() == images.keys()
        for name, example in examples.items():
            answer = ANSWERS[int(name[15:23])] if split == "validation" else name.partition("_")[0]
            assert labels.int2str(example["label"]) == answer
            if name not in (CMYK, DISGUISED_PNG):
                assert example["image"] == images[name]


def test_imagenet_is_repaired_where_it_is_not_rgb_jpeg(archives, tmp_path):
    build_imagenet(archives, tmp_path)
    stored = {example["file_name"].decode(): example["image"] for example in read(tmp_path, "imagenet2012", "train")}
    for name in (CMYK, DISGUISED_PNG):
        with Image.open(io.BytesIO(stored[name])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
        assert np.abs(pixels(stored[name]) - pixels(imagenet_images()["train"][name])).max() <= 4


def test_the_metadata_is_that_of_tfds(archives, tmp_path, small_shards):
    folder = build_imagenet(archives, tmp_path)
    ours, official = (
        tfds.builder_from_directory(folder).info,
        tfds.builder("imagenet2012", data_dir=tmp_path / "none").info,
    )
    assert (ours.name, ours.version, ours.file_format.value) == ("imagenet2012", official.version, "array_record")
    assert ours.features.to_json() == official.features.to_json()
    assert ours.features["label"].names == official.features["label"].names
    assert ours.supervised_keys == official.supervised_keys
    for split, images in imagenet_images().items():
        files = ours.splits[split].filepaths
        assert ours.splits[split].num_examples == len(images)
        assert ours.splits[split].num_bytes == sum(os.path.getsize(file) for file in files)
        assert ours.splits[split].shard_lengths == [count(file) for file in files]
    assert len(ours.splits["train"].shard_lengths) > 2
    assert {path.name for path in folder.iterdir()} == {
        *shard_files(tmp_path), "dataset_info.json", "features.json", "label.labels.txt"
    }  # fmt: skip


def test_files_and_their_order_are_those_that_tfds_writes(archives, tmp_path, small_shards):
    build_imagenet(archives, tmp_path / "ours")
    examples = {split: read(tmp_path / "ours", "imagenet2012", split) for split in SPLITS}

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=build_features(index_archives(archives, partial=True)))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split):
            for example in sorted(examples[split], key=lambda example: example["file_name"]):
                yield example["file_name"].decode(), example

    tfds.disable_progress_bar()
    Imagenet2012(data_dir=tmp_path / "theirs", file_format="array_record").download_and_prepare()
    ours, theirs = shard_files(tmp_path / "ours"), shard_files(tmp_path / "theirs")
    assert {name: count(path) for name, path in ours.items()} == {name: count(path) for name, path in theirs.items()}
    for split in SPLITS:
        assert read(tmp_path / "theirs", "imagenet2012", split) == examples[split]


def build_killed(monkeypatch, index: Index, folder: Path, *, image: int) -> dict[str, Path]:
    """Kills a build at its n-th image, and returns the files that were finished."""
    whole_image, countdown = building._encoded_image, iter(range(image - 1))

    def killing_image(*arguments):
        if next(countdown, None) is None:
            raise KeyboardInterrupt
        return whole_image(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(building, "_encoded_image", killing_image)
        with pytest.raises(KeyboardInterrupt):
            build(index, folder)
    assert not folder.exists()
    return {name: path for name, path in shard_files(folder.parent).items() if not name.startswith(".")}


@pytest.mark.parametrize("image", [1, 9, 30])
def test_a_killed_run_goes_on_with_the_missing_shards(archives, tmp_path, small_shards, monkeypatch, image):
    index, folder = index_archives(archives, partial=True), tmp_path / "killed" / "imagenet2012" / "5.1.0"
    finished = build_killed(monkeypatch, index, folder, image=image)
    assert bool(finished) == (image > 1)
    before = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in finished.items()}
    build(index, folder)
    assert contents(folder) == contents(build_imagenet(archives, tmp_path / "undisturbed"))
    after = {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in finished}
    assert after == before


def test_a_file_that_was_cut_short_is_written_again(archives, tmp_path, small_shards, monkeypatch):
    index, folder = index_archives(archives, partial=True), tmp_path / "killed" / "imagenet2012" / "5.1.0"
    for file in build_killed(monkeypatch, index, folder, image=30).values():
        file.write_bytes(file.read_bytes()[:-100])
    build(index, folder)
    assert contents(folder) == contents(build_imagenet(archives, tmp_path / "undisturbed"))


@pytest.mark.parametrize("change", ["image", "class"])
def test_files_of_another_source_are_not_reused(tmp_path, small_shards, monkeypatch, change):
    source, folder = write_folder(tmp_path / "source", flowers()), tmp_path / "killed" / "flowers" / "1.0.0"
    assert build_killed(monkeypatch, index_folder(source), folder, image=9)
    if change == "image":
        image = source / "train" / "rose" / "b.bmp"
        image.write_bytes(image.read_bytes()[:-100] + bytes(100))
        os.utime(image, ns=(0, 0))  # another time, even where clocks are coarse
    else:
        (source / "train" / "aster").rename(source / "train" / "zinnia")
    fresh = tmp_path / "fresh" / "flowers" / "1.0.0"
    for target in (folder, fresh):
        build(index_folder(source), target)
    assert contents(folder) == contents(fresh)


def test_an_image_that_pillow_cannot_read_is_named(archives, tmp_path):
    (archives / "ILSVRC2012_img_train.tar").write_bytes(tar({"n01440764.tar": tar({"n01440764_1.JPEG": b"no image"})}))
    with pytest.raises(UserError, match=r"n01440764_1.JPEG in .*train.tar is no image"):
        build_imagenet(archives, tmp_path)


def test_a_folder_becomes_a_source(tmp_path):
    files = flowers()
    folder = tmp_path / "flowers" / "1.0.0"
    build(index_folder(write_folder(tmp_path / "source", files)), folder, threads=2)
    info = tfds.builder("flowers", data_dir=tmp_path, file_format="array_record").info
    assert info.features["label"].names == ["aster", "rose", "tulip"]
    for split, directory, count in (("train", "train", 7), ("validation", "val", 2)):
        source = open_source("flowers", split, data_dir=str(tmp_path))
        assert (len(source), source.num_classes) == (count, 3)
        for example in (source.records[index] for index in range(count)):
            name = example["file_name"].decode()
            original = files[f"{directory}/{name}"]
            assert info.features["label"].int2str(example["label"]) == name.partition("/")[0]
            if name in ("tulip/early/a.jpg", "tulip/c.jpeg", "rose/a.png", "rose/camera.jpg"):
                assert example["image"] == original
            else:
                tolerance = 4 if name == "tulip/b.JPG" else 0
                assert np.abs(pixels(example["image"]) - pixels(original)).max() <= tolerance
                with Image.open(io.BytesIO(example["image"])) as image:
                    assert (image.format, image.mode) == ("JPEG" if tolerance else "PNG", "RGB")


def test_file_names_that_are_not_utf8_are_kept_readable(tmp_path):
    images = {**flowers(), "train/rose/b\udcff\n.png": smooth(9, "PNG")}
    build(index_folder(write_folder(tmp_path / "source", images)), tmp_path / "flowers" / "1.0.0")
    source = open_source("flowers", "train", data_dir=str(tmp_path))
    assert b"rose/b\\xff\n.png" in {source.records[index]["file_name"] for index in range(len(source))}


@pytest.mark.parametrize("name", ["two\nlines", "re\rturn", "space ", "\udcff"])
def test_class_names_that_a_build_cannot_hold_are_refused(tmp_path, name):
    images = {path.replace("rose", name): image for path, image in flowers().items()}
    with pytest.raises(UserError, match=r"has a class .*, which a build cannot hold: rename it"):
        index_folder(write_folder(tmp_path, images))
