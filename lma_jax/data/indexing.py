"""Finds the examples of a data set that is to be built: in ImageNet's archives, or in a folder of images."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lma_jax import files
from lma_jax.data.sources import images_by_class, split_folder
from lma_jax.errors import UserError

OFFICIAL_COUNTS = {"train": 1_281_167, "validation": 50_000}


@dataclass(frozen=True, slots=True)
class Example:
    """One image: its name, its class, and the file, offset and size in bytes at which it is stored."""

    key: str
    label: int
    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Index:
    """The contents of a data set.

    Attributes:
        class_names: names of the labels 0, 1, ...
        lossless: if True, PNGs stay and other formats than JPEG become PNG; if False, everything becomes JPEG.
        splits: the examples by split.
    """

    class_names: tuple[str, ...]
    lossless: bool
    splits: dict[str, list[Example]]


def index_archives(folder: Path, *, partial: bool = False) -> Index:
    """Finds every image in the two archives of ImageNet.

    Args:
        folder: folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
        partial: accept archives that lack images.

    Raises:
        UserError: an archive is missing, is damaged, is not one of ImageNet's, or lacks images.
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
            hint = "download it again, or add --partial to build from the images that it has"
            raise UserError(f"{paths[split]} holds {found:,} images instead of {expected:,}: {hint}")
    return Index(tuple(synsets), lossless=False, splits=splits)


def index_folder(folder: Path) -> Index:
    """Finds every image at any depth of `folder`/train/<class>/ and `folder`/validation/<class>/, or val/<class>/.

    Raises:
        UserError: a split or a class has no images, or validation has a class that train lacks.
    """
    train, val = folder / "train", split_folder(folder, "validation")
    train_images, val_images = images_by_class(train), images_by_class(val)
    class_names = tuple(train_images)
    _require_lines(class_names, train)
    unknown = [name for name in val_images if name not in train_images]
    if unknown:
        raise UserError(f"{val} has a class {unknown[0]!r} that {train} lacks")
    splits = {
        "train": list(_folder_examples(train, train_images, class_names)),
        "validation": list(_folder_examples(val, val_images, class_names)),
    }
    return Index(class_names, lossless=True, splits=splits)


def _train_examples(path: Path, synsets: list[str]) -> Iterator[Example]:
    from tqdm import tqdm

    for archive in tqdm(_members(path, 0, path.stat().st_size), desc="indexing", unit="synset", disable=None):
        synset = Path(archive.name).stem
        if synset not in synsets:
            raise UserError(f"{archive.name!r} in {path} is not one of ImageNet's synsets")
        label = synsets.index(synset)
        for image in _members(path, archive.offset_data, archive.size):
            yield Example(files.printable(Path(image.name).name), label, path, image.offset_data, image.size)


def _validation_examples(path: Path, synsets: list[str], answers: list[str]) -> Iterator[Example]:
    for image in _members(path, 0, path.stat().st_size):
        key = Path(image.name).name
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", key)
        if not match or not 1 <= int(match[1]) <= len(answers):
            raise UserError(f"{image.name!r} in {path} is not one of ImageNet's validation images")
        yield Example(key, synsets.index(answers[int(match[1]) - 1]), path, image.offset_data, image.size)


def _require_lines(class_names: tuple[str, ...], folder: Path) -> None:
    """Raises a UserError for a name that TFDS's file of class names cannot hold: it has one stripped line for each."""
    for name in class_names:
        if name != name.strip() or re.search(r"[\n\r\ud800-\udfff]", name):
            raise UserError(
                f"{folder} has a class {name!r}, which a build cannot hold: rename it to one line of UTF-8 without "
                "spaces around it"
            )


def _members(path: Path, start: int, size: int) -> list[tarfile.TarInfo]:
    """The files in the tar archive at bytes [start, start + size) of `path`, with offsets into `path`."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                members = archive.getmembers()
            # An archive ends with blocks of zeros, but tarfile takes most damage for the end.
            file.seek(archive.offset)
            whole = archive.offset < start + size and file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except tarfile.TarError:
            whole = False
    if not whole:
        raise UserError(f"{path} is damaged or cut short: download it again")
    return [member for member in members if member.isfile()]


def _folder_examples(split: Path, images: dict[str, list[str]], class_names: tuple[str, ...]) -> Iterator[Example]:
    for name, paths in images.items():
        label = class_names.index(name)
        for path in paths:
            file = split / name / path
            yield Example(files.printable(f"{name}/{path}"), label, file, 0, file.stat().st_size)
