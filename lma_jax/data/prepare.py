"""Prepares data for training, without TensorFlow: ImageNet from its two official archives, or a folder of images.

python -m lma_jax.data.prepare --archives <folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar>
python -m lma_jax.data.prepare --folder <folder of train/<class>/* and val/<class>/*> --name flowers

The result is a TFDS build in array_record format; ImageNet's has the features, labels and order of TFDS's own
imagenet2012. The images are read where they lie, and the same command again resumes a killed run.
"""

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError
from lma_jax.images import IMAGE_SUFFIXES

ARCHIVES = flags.DEFINE_string("archives", None, "Folder of the two official archives of ImageNet.")
PARTIAL = flags.DEFINE_bool("partial", False, "With --archives: accept archives that lack images.")
FOLDER = flags.DEFINE_string("folder", None, "Folder of train/<class>/* and val/<class>/*.")
NAME = flags.DEFINE_string("name", None, "With --folder: the name that the data set will have.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the builds. Default: TFDS's, ~/tensorflow_datasets.")
THREADS = flags.DEFINE_integer("threads", os.cpu_count() or 1, "Files to write at a time.", lower_bound=1)

OFFICIAL_COUNTS = {"train": 1_281_167, "validation": 50_000}
FINGERPRINT = "fingerprint"  # file that tells what the others in an incomplete build were made from


@dataclass(frozen=True, slots=True)
class Example:
    """One image: its name, its class, and where its bytes lie."""

    key: str
    label: int
    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Index:
    """What a build is made of.

    Attributes:
        classes: names of the labels.
        lossless: other formats than JPEG become PNG, and PNG stays; if False, everything becomes JPEG.
        splits: the examples by split.
    """

    classes: list[str]
    lossless: bool
    splits: dict[str, list[Example]]


@dataclass(frozen=True)
class Shard:
    """One file of a build."""

    path: Path
    examples: list[Example]


def index_archives(folder: Path, *, partial: bool = False) -> Index:
    """Finds every image in the two archives of ImageNet.

    Raises:
        UserError: an archive is missing, damaged or foreign, or lacks images (not if `partial`).
    """
    import tensorflow_datasets as tfds

    labels = tfds.core.tfds_path("datasets/imagenet2012")
    synsets = (labels / "labels.txt").read_text().split()
    answers = (labels / "validation_labels.txt").read_text().split()
    paths = {"train": folder / "ILSVRC2012_img_train.tar", "validation": folder / "ILSVRC2012_img_val.tar"}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path} is missing: get both archives from https://image-net.org/download-images")
    splits = {
        "train": list(_train_examples(paths["train"], synsets)),
        "validation": list(_validation_examples(paths["validation"], synsets, answers)),
    }
    for split, examples in splits.items():
        found, expected = len(examples), OFFICIAL_COUNTS[split]
        if not found or (found != expected and not partial):
            hint = "download it again, or add --partial to build what is there"
            raise UserError(f"{paths[split]} holds {found:,} images instead of {expected:,}: {hint}")
    return Index(synsets, lossless=False, splits=splits)


def _train_examples(path: Path, synsets: list[str]) -> Iterator[Example]:
    from tqdm import tqdm

    for archive in tqdm(_members(path, 0, path.stat().st_size), desc="indexing", unit="synset", disable=None):
        synset = Path(archive.name).stem
        if synset not in synsets:
            raise UserError(f"{archive.name!r} in {path} is none of ImageNet's synsets")
        label = synsets.index(synset)
        for image in _members(path, archive.offset_data, archive.size):
            yield Example(Path(image.name).name, label, path, image.offset_data, image.size)


def _validation_examples(path: Path, synsets: list[str], answers: list[str]) -> Iterator[Example]:
    for image in _members(path, 0, path.stat().st_size):
        key = Path(image.name).name
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", key)
        if not match or not 1 <= int(match[1]) <= len(answers):
            raise UserError(f"{image.name!r} in {path} is none of ImageNet's validation images")
        yield Example(key, synsets.index(answers[int(match[1]) - 1]), path, image.offset_data, image.size)


def _members(path: Path, start: int, size: int) -> list[tarfile.TarInfo]:
    """The files in the tar archive that fills bytes [start, start + size) of `path`, with offsets into `path`."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                members = archive.getmembers()
            # An archive ends in blocks of zeros, but tarfile takes most damage for the end.
            file.seek(archive.offset)
            whole = archive.offset < start + size and file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except tarfile.TarError:
            whole = False
    if not whole:
        raise UserError(f"{path} is damaged or cut short: download it again")
    return [member for member in members if member.isfile()]


def index_folder(folder: Path) -> Index:
    """Finds every image in `folder`/train/<class> and `folder`/val/<class> (or validation/<class>), at any depth.

    Raises:
        UserError: a split or a class has no images, or validation has a class that train lacks.
    """
    train = folder / "train"
    val = folder / ("validation" if (folder / "validation").is_dir() else "val")
    classes = _class_names(train)
    foreign = sorted(set(_class_names(val)) - set(classes))
    if foreign:
        raise UserError(f"{val} has a class {foreign[0]!r} that {train} lacks")
    splits = {"train": list(_folder_examples(train, classes)), "validation": list(_folder_examples(val, classes))}
    return Index(classes, lossless=True, splits=splits)


def _class_names(split: Path) -> list[str]:
    names = [path.name for path in split.glob("*") if path.is_dir() and not path.name.startswith(".")]
    if not names:
        raise UserError(f"{split} must be a folder that holds a folder of images for each class")
    return sorted(names)


def _folder_examples(split: Path, classes: list[str]) -> Iterator[Example]:
    for name in _class_names(split):
        keys = [path.relative_to(split) for path in (split / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
        keys = sorted(key for key in keys if not any(part.startswith(".") for part in key.parts))
        if not keys:
            raise UserError(f"{split / name} holds no images")
        label = classes.index(name)
        for key in keys:
            yield Example(key.as_posix(), label, split / key, 0, (split / key).stat().st_size)


def build(index: Index, folder: Path, *, threads: int = 1) -> None:
    """Writes `folder`, <data_dir>/<name>/<version>; until all is done it is called <version>.incomplete."""
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    incomplete = folder.with_name(f"{folder.name}.incomplete")
    splits, features = plan_shards(index, incomplete, folder.parent.name), _features(index)
    shards = [shard for split in splits.values() for shard in split]
    _claim(incomplete, index, shards)
    missing = [shard for shard in shards if not _is_whole(shard)]
    total, left = (sum(len(shard.examples) for shard in some) for some in (shards, missing))
    pool = ThreadPoolExecutor(threads)
    try:
        with tqdm(total=total, initial=total - left, unit="image", disable=None) as bar:
            for written in as_completed(pool.submit(write_shard, s, index, features, bar.update) for s in missing):
                written.result()
    finally:
        pool.shutdown(cancel_futures=True)
    infos = [_split_info(split, files) for split, files in splits.items()]
    about = dict(version=folder.name, features=features, split_infos=infos, supervised_keys=("image", "label"))
    tfds.folder_dataset.write_metadata(data_dir=incomplete, check_data=False, **about)
    incomplete.rename(folder)
    (folder / FINGERPRINT).unlink()


def plan_shards(index: Index, folder: Path, name: str) -> dict[str, list[Shard]]:
    """Deals the examples of each split to files as TFDS does: in the order of their hashed keys."""
    from tensorflow_datasets.core import hashing, naming
    from tensorflow_datasets.core.utils import shard_utils

    splits = {}
    for split, examples in index.splits.items():
        template = naming.ShardedFileTemplate(folder, dataset_name=name, split=split, filetype_suffix="array_record")
        num_bytes = sum(example.size for example in examples)
        num_shards = shard_utils.ShardConfig.calculate_number_shards(num_bytes, len(examples))
        ends = shard_utils.get_shard_boundaries(len(examples), num_shards)
        hash_key = hashing.Hasher(split).hash_key
        ordered = [examples[i] for _, i in sorted((hash_key(example.key), i) for i, example in enumerate(examples))]
        files = zip(template.sharded_filepaths(num_shards), [0, *ends], ends)
        splits[split] = [Shard(Path(path), ordered[start:end]) for path, start, end in files]
    return splits


def _claim(folder: Path, index: Index, shards: list[Shard]) -> None:
    """Empties `folder` unless a killed run wrote it from the same images; a file's time tells whether it changed."""
    digest = hashlib.sha256(repr((index.classes, index.lossless)).encode())
    for shard in shards:
        digest.update(repr((shard.path.name, shard.examples)).encode())
    for path in sorted({example.path for shard in shards for example in shard.examples}):
        digest.update(repr(path.stat().st_mtime_ns).encode())
    fingerprint = folder / FINGERPRINT
    if not fingerprint.exists() or fingerprint.read_text() != digest.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fingerprint.write_text(digest.hexdigest())


def _is_whole(shard: Shard) -> bool:
    from array_record.python.array_record_module import ArrayRecordReader

    return shard.path.exists() and ArrayRecordReader(str(shard.path)).num_records() == len(shard.examples)


def write_shard(shard: Shard, index: Index, features: Any, progress: Callable[[], object]) -> None:
    """Writes one file, which has its name only when it is whole."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(features.get_serialized_info())
    temporary = shard.path.with_name(f"{shard.path.name}.tmp")
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for example in shard.examples:
            fields = {"image": _image(example, index), "label": example.label, "file_name": example.key}
            record = serializer.get_tf_example(features.encode_example(fields))
            writer.write(record.SerializeToString(deterministic=True))
            progress()
        writer.close()
    except RuntimeError as error:  # such as a full disk
        raise UserError(f"cannot write {shard.path}: {error}") from error
    temporary.rename(shard.path)


def _image(example: Example, index: Index) -> bytes:
    """The encoded image: its own bytes where they need no repair, else its RGB pixels encoded anew."""
    from PIL import Image

    with example.path.open("rb", buffering=0) as file:
        encoded = os.pread(file.fileno(), example.size, example.offset)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            is_jpeg = image.format in ("JPEG", "MPO")  # MPO: JPEG with a second picture appended, from cameras
            if image.mode != "CMYK" and (is_jpeg or (index.lossless and image.format == "PNG")):
                return encoded
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{example.key} in {example.path} is no image that Pillow can read: {error}") from error
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG" if is_jpeg or not index.lossless else "PNG", quality=100, subsampling=0)
    return buffer.getvalue()


def _features(index: Index) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format=None if index.lossless else "jpeg"),
            "label": tfds.features.ClassLabel(names=index.classes),
            "file_name": tfds.features.Text(),
        }
    )


def _split_info(split: str, shards: list[Shard]) -> Any:
    import tensorflow_datasets as tfds

    num_bytes = sum(shard.path.stat().st_size for shard in shards)
    return tfds.core.SplitInfo(name=split, shard_lengths=[len(s.examples) for s in shards], num_bytes=num_bytes)


def _build_name() -> str:
    import tensorflow_datasets as tfds

    if bool(ARCHIVES.value) == bool(FOLDER.value):
        raise UserError("give one source of images: --archives=<folder>, or --folder=<folder> and --name=<name>")
    if ARCHIVES.value:
        return "imagenet2012"
    name, taken = NAME.value or "", {"digits", *tfds.list_builders(with_community_datasets=False)}
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in taken:
        raise UserError(f"--name={name} must be a word of a-z, 0-9 and _, and not the name of a data set of TFDS")
    return name


def main() -> None:
    import tensorflow_datasets as tfds

    name, version = _build_name(), "5.1.0" if ARCHIVES.value else "1.0.0"
    data_dir = Path(DATA_DIR.value or tfds.core.constants.DATA_DIR).expanduser().absolute()
    source, folder = Path(ARCHIVES.value or FOLDER.value or "").expanduser().absolute(), data_dir / name / version
    use = f"use it with --config.dataset={name} --config.data_dir={data_dir}"
    if folder.exists():
        print(f"{folder} is there already (to prepare it anew, delete it): {use}")
        return
    try:
        index = index_archives(source, partial=PARTIAL.value) if ARCHIVES.value else index_folder(source)
        build(index, folder, threads=THREADS.value)
    except OSError as error:
        raise UserError(str(error)) from error
    counts = " and ".join(f"{len(examples):,} {split}" for split, examples in index.splits.items())
    print(f"wrote {counts} images of {len(index.classes):,} classes to {folder}: {use}")


if __name__ == "__main__":
    cli.run(main)
