"""Builds from archives in ImageNet's layout and from folders, read back by TFDS."""

import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils

from helpers import commands
from lma_jax.data import prepare
from lma_jax.data.sources import open_source
from lma_jax.errors import UserError

SYNSETS = ("n15075141", "n01440764", "n02105855", "n01443537")  # the archive's order is not that of the labels
CMYK, DISGUISED_PNG = "n01443537_2.JPEG", "n02105855_2933.JPEG"
ANSWERS = {1: "n01751748", 2: "n09193705", 3: "n02105855", 50_000: "n02437616"}
SPLITS = ("train", "validation")


def encode(seed: int, file_format: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """A smooth image, which survives JPEG, of its own for each seed."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    image = Image.fromarray(corners).resize((24 + seed % 5, 20), Image.Resampling.BILINEAR).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"), np.int32)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def imagenet_images() -> dict[str, dict[str, bytes]]:
    """What the archives hold, by split and file name."""
    train = {f"{synset}_{n}.JPEG": encode(10 * s + n) for s, synset in enumerate(SYNSETS) for n in range(7)}
    train[CMYK] = encode(100, mode="CMYK", quality=95)
    train[DISGUISED_PNG] = encode(101, "PNG")
    validation = {f"ILSVRC2012_val_{n:08d}.JPEG": encode(200 + n, mode="L" if n == 2 else "RGB") for n in ANSWERS}
    return {"train": train, "validation": validation}


def write_archives(folder: Path) -> dict[str, dict[str, bytes]]:
    images = imagenet_images()
    synsets = {
        f"{synset}.tar": tar({name: image for name, image in images["train"].items() if name.startswith(synset)})
        for synset in SYNSETS
    }
    folder.mkdir(exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(synsets))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(dict(reversed(images["validation"].items()))))
    return images


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def flowers() -> dict[str, bytes]:
    return {
        "train/tulip/early/a.jpg": encode(0),
        "train/tulip/b.JPG": encode(1, mode="CMYK", quality=95),
        "train/rose/a.png": encode(2, "PNG", "RGBA"),
        "train/rose/b.bmp": encode(3, "BMP"),
        "train/rose/camera.jpg": encode(8, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
        "train/aster/a.Webp": encode(4, "WEBP", lossless=True),
        "train/aster/b.gif": encode(5, "GIF", "P"),
        "train/aster/.hidden.png": b"",
        "train/aster/notes.txt": b"",
        "train/.thumbnails/a.png": b"",
        "val/rose/c.tiff": encode(6, "TIFF"),
        "val/tulip/c.jpeg": encode(7),
    }


def read(data_dir: Path, name: str, split: str) -> list[dict]:
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.data_source(name, split=split, data_dir=data_dir, decoders=decoders))


def shard_files(data_dir: Path) -> dict[str, Path]:
    return {path.name: path for path in data_dir.rglob("*array_record-*-of-*")}


def count(file: os.PathLike) -> int:
    return ArrayRecordReader(os.fspath(file)).num_records()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_shards(monkeypatch):
    """The images of these tests fill several shards."""
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 1200)


@pytest.fixture
def archives(tmp_path) -> Path:
    write_archives(tmp_path / "archives")
    return tmp_path / "archives"


def build_imagenet(archives: Path, data_dir: Path, **options) -> Path:
    folder = data_dir / "imagenet2012" / "5.1.0"
    prepare.build(prepare.index_archives(archives, partial=True), folder, **options)
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

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=prepare._features(prepare.index_archives(archives, partial=True))
            )

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


def build_killed(monkeypatch, index: prepare.Index, folder: Path, *, image: int) -> dict[str, Path]:
    """Kills a build at its n-th image, and returns the files that were finished."""
    whole_image, countdown = prepare._image, iter(range(image - 1))

    def killing_image(*arguments):
        if next(countdown, None) is None:
            raise KeyboardInterrupt
        return whole_image(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_image", killing_image)
        with pytest.raises(KeyboardInterrupt):
            prepare.build(index, folder)
    assert not folder.exists()
    return {name: path for name, path in shard_files(folder.parent).items() if path.suffix != ".tmp"}


@pytest.mark.parametrize("image", [1, 9, 30])
def test_a_killed_run_goes_on_with_the_missing_shards(archives, tmp_path, small_shards, monkeypatch, image):
    index, folder = prepare.index_archives(archives, partial=True), tmp_path / "killed" / "imagenet2012" / "5.1.0"
    finished = build_killed(monkeypatch, index, folder, image=image)
    assert bool(finished) == (image > 1)
    before = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in finished.items()}
    prepare.build(index, folder)
    assert contents(folder) == contents(build_imagenet(archives, tmp_path / "undisturbed"))
    after = {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in finished}
    assert after == before


def test_a_file_that_was_cut_short_is_written_again(archives, tmp_path, small_shards, monkeypatch):
    index, folder = prepare.index_archives(archives, partial=True), tmp_path / "killed" / "imagenet2012" / "5.1.0"
    for file in build_killed(monkeypatch, index, folder, image=30).values():
        file.write_bytes(file.read_bytes()[:-100])
    prepare.build(index, folder)
    assert contents(folder) == contents(build_imagenet(archives, tmp_path / "undisturbed"))


@pytest.mark.parametrize("change", ["image", "class"])
def test_files_of_another_source_are_not_reused(tmp_path, small_shards, monkeypatch, change):
    source, folder = write_folder(tmp_path / "source", flowers()), tmp_path / "killed" / "flowers" / "1.0.0"
    assert build_killed(monkeypatch, prepare.index_folder(source), folder, image=9)
    if change == "image":
        image = source / "train" / "rose" / "b.bmp"
        image.write_bytes(image.read_bytes()[:-100] + bytes(100))
        os.utime(image, ns=(0, 0))  # another time, even where clocks are coarse
    else:
        (source / "train" / "aster").rename(source / "train" / "zinnia")
    fresh = tmp_path / "fresh" / "flowers" / "1.0.0"
    for target in (folder, fresh):
        prepare.build(prepare.index_folder(source), target)
    assert contents(folder) == contents(fresh)


@pytest.mark.parametrize("split", SPLITS)
def test_images_that_lack_are_counted(archives, monkeypatch, split):
    counts = {"train": 29, "validation": 4}
    monkeypatch.setattr(prepare, "OFFICIAL_COUNTS", counts)
    prepare.index_archives(archives)
    monkeypatch.setitem(counts, split, 1_000)
    with pytest.raises(UserError, match=rf"holds {29 if split == 'train' else 4} images instead of 1,000.*--partial"):
        prepare.index_archives(archives)
    prepare.index_archives(archives, partial=True)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_missing_archive_is_named(archives, name):
    (archives / f"ILSVRC2012_img_{name}.tar").unlink()
    with pytest.raises(UserError, match=rf"ILSVRC2012_img_{name}.tar is missing"):
        prepare.index_archives(archives, partial=True)


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("size", [0, 100, 512, 4000, 5120, -10240])
def test_an_archive_that_was_cut_short_is_refused(archives, name, size):
    path = archives / f"ILSVRC2012_img_{name}.tar"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"ILSVRC2012_img_{name}.tar is damaged or cut short"):
        prepare.index_archives(archives, partial=True)


def test_a_synset_archive_that_was_cut_short_is_refused(archives):
    whole = tar({"n01440764_1.JPEG": encode(1), "n01440764_2.JPEG": encode(2)})
    path = archives / "ILSVRC2012_img_train.tar"
    for size in range(512, 4096, 512):
        if any(whole[size : size + 512]) or any(whole[size - 512 : size]):
            path.write_bytes(tar({"n01440764.tar": whole[:size], "n01443537.tar": whole}))
            with pytest.raises(UserError, match="damaged or cut short"):
                prepare.index_archives(archives, partial=True)


def test_an_archive_with_a_damaged_header_is_refused(archives):
    path = archives / "ILSVRC2012_img_val.tar"
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"ILSVRC2012_val_00000001")] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged or cut short"):
        prepare.index_archives(archives, partial=True)


def test_a_foreign_synset_is_named(archives):
    (archives / "ILSVRC2012_img_train.tar").write_bytes(tar({"n99999999.tar": tar({})}))
    with pytest.raises(UserError, match=r"'n99999999.tar' in .* is none of ImageNet's synsets"):
        prepare.index_archives(archives, partial=True)


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.jpg"])
def test_a_foreign_validation_image_is_named(archives, name):
    (archives / "ILSVRC2012_img_val.tar").write_bytes(tar({name: encode(0)}))
    with pytest.raises(UserError, match=rf"'{name}' in .* is none of ImageNet's validation images"):
        prepare.index_archives(archives, partial=True)


def test_an_image_that_pillow_cannot_read_is_named(archives, tmp_path):
    (archives / "ILSVRC2012_img_train.tar").write_bytes(tar({"n01440764.tar": tar({"n01440764_1.JPEG": b"no image"})}))
    with pytest.raises(UserError, match=r"n01440764_1.JPEG in .*train.tar is no image"):
        build_imagenet(archives, tmp_path)


def test_a_folder_becomes_a_source(tmp_path):
    files = flowers()
    folder = tmp_path / "flowers" / "1.0.0"
    prepare.build(prepare.index_folder(write_folder(tmp_path / "source", files)), folder, threads=2)
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


def test_a_folder_may_call_its_second_split_validation(tmp_path):
    files = {name.replace("val/", "validation/"): content for name, content in flowers().items()}
    index = prepare.index_folder(write_folder(tmp_path, files))
    assert [len(examples) for examples in index.splits.values()] == [7, 2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"val/rose/a.jpg": b""}, "train must be a folder that holds a folder"),
        ({"train/rose/a.jpg": b""}, "val must be a folder that holds a folder"),
        ({"train/a.jpg": b"", "val/rose/a.jpg": b""}, "train must be a folder that holds a folder"),
        ({"train/rose/a.jpg": b"", "train/tulip/a.txt": b"", "val/rose/a.jpg": b""}, "train/tulip holds no images"),
        ({"train/rose/a.jpg": b"", "val/lily/a.jpg": b""}, r"val has a class 'lily' that .*train lacks"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        prepare.index_folder(write_folder(tmp_path, files))


def test_the_command_prepares_a_folder_once(tmp_path):
    source = write_folder(tmp_path / "source", flowers())
    arguments = ("--folder", source, "--name=flowers", "--data_dir", tmp_path / "builds")
    written = commands.run("lma_jax.data.prepare", *arguments)
    assert "wrote 7 train and 2 validation images of 3 classes" in written
    assert f"--config.dataset=flowers --config.data_dir={tmp_path / 'builds'}" in written
    prepare.build(prepare.index_folder(source), tmp_path / "here" / "flowers" / "1.0.0")
    folders = [tmp_path / name / "flowers" / "1.0.0" for name in ("builds", "here")]
    assert contents(folders[0]) == contents(folders[1])  # in this process or another
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "builds").rglob("*")}
    assert "is there already" in commands.run("lma_jax.data.prepare", *arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "builds").rglob("*")} == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(), "give one source"),
        (dict(ARCHIVES="a", FOLDER="b"), "give one source"),
        (dict(FOLDER="b"), "--name= must be a word"),
        (dict(FOLDER="b", NAME="Flowers"), "--name=Flowers must be a word"),
        (dict(FOLDER="b", NAME="cifar10"), "not the name of a data set of TFDS"),
        (dict(FOLDER="/dev/null", NAME="flowers"), "/dev/null/train must be a folder"),
        (dict(FOLDER="{source}", NAME="flowers", DATA_DIR="/dev/null"), "Not a directory: '/dev/null"),
    ],
)
def test_a_wrong_command_line_is_explained(tmp_path, monkeypatch, values, message):
    source = write_folder(tmp_path / "source", flowers())
    for flag in ("ARCHIVES", "FOLDER", "NAME", "DATA_DIR"):
        value = values.get(flag, tmp_path if flag == "DATA_DIR" else None)
        monkeypatch.setattr(prepare, flag, SimpleNamespace(value=value and str(value).format(source=source)))
    monkeypatch.setattr(prepare, "THREADS", SimpleNamespace(value=1))
    with pytest.raises(UserError, match=message):
        prepare.main()


def test_the_command_answers_a_mistake_in_one_line(tmp_path):
    line = commands.fail("lma_jax.data.prepare", f"--archives={tmp_path}", f"--data_dir={tmp_path}")
    assert f"{tmp_path}/ILSVRC2012_img_train.tar is missing" in line
