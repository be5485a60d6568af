"""Random-access sources of encoded images."""

import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lma_jax import files
from lma_jax.data.builds import open_build
from lma_jax.errors import UserError
from lma_jax.images import IMAGE_SUFFIXES, find_images, read_file

# Each size of a file may be a question to a server. On a local disk, a million take 3 seconds.
STAT_THREADS = 32


class Records(Protocol):
    """Examples by index: {"image": the encoded file (bytes), "label": the class (int)}.

    An example may have a "file_name", which messages use.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        name: data set and split, for messages.
        records: the examples.
        class_names: names of the labels 0, 1, ...
        identity: describes the examples by their names and sizes, wherever they lie: two descriptions differ if
            examples were added, removed, renamed or replaced. Empty if it is unknown.
    """

    name: str
    records: Records
    class_names: tuple[str, ...]
    identity: Callable[[], Mapping[str, str]] = dict

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.records)


def open_source(name: str, split: str, *, data_dir: str = "") -> Source:
    """Opens one split of a data set.

    Args:
        name: "digits" (embedded; built when missing), "folder" (images at any depth of <data_dir>/<split>/<class>/), or
            the name of a TFDS build for image classification in array_record format, such as "imagenet2012" or, by its
            version, "imagenet2012:5.1.0".
        split: a whole split, such as "train" or "validation"; an image folder may call the latter `val`.
        data_dir: folder of the TFDS builds, or TFDS's default (~/tensorflow_datasets) if empty; or the image folder.

    Raises:
        UserError: the data set, the split or one of its files is missing; the message says how to prepare it.
    """
    if name == "folder":
        return _open_folder(files.path_of(data_dir), split)
    records = open_build(name, split, data_dir=data_dir)
    return Source(f"{name} {split}", records, records.class_names, records.identity)


class FolderRecords:
    """The images at any depth of <folder>/<class>/, by class and path; the label is the rank of the class.

    Raises:
        UserError: there is no class, or a class without images.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        files = images_by_class(folder)
        self.class_names = tuple(files)
        # One array of bytes: a million path objects would cost gigabytes in each worker.
        self._names = np.array([os.fsencode(name) for names in files.values() for name in names])
        self._labels = np.repeat(np.arange(len(files)), [len(names) for names in files.values()])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = int(self._labels[index])
        name = f"{self.class_names[label]}/{os.fsdecode(self._names[index])}"
        return {"image": read_file(self._folder / name), "label": label, "file_name": name}

    def identity(self) -> dict[str, str]:
        """The number of images of each class, and a digest of their names and sizes.

        Raises:
            UserError: an image has disappeared.
        """
        with ThreadPoolExecutor(STAT_THREADS) as pool:
            described = pool.map(self._describe_class, range(len(self.class_names)))
            return dict(zip(map(repr, self.class_names), described))

    def _describe_class(self, label: int) -> str:
        start, end = np.searchsorted(self._labels, [label, label + 1])
        folder, names = os.fsencode(self._folder / self.class_names[label]), self._names[start:end]
        try:
            sizes = [os.stat(os.path.join(folder, name)).st_size for name in names]
        except OSError as error:
            raise UserError(f"cannot read {os.fsdecode(error.filename)}: {error.strerror}") from error
        digest = zlib.crc32(b"".join(b"%s/%d/" % (name, size) for name, size in zip(names, sizes)))
        return f"{len(names):,} images, digest {digest:08x}"


def images_by_class(folder: Path) -> dict[str, list[str]]:
    """The classes of a split, sorted, and for each the paths of its images relative to <folder>/<class>, sorted.

    Raises:
        UserError: there is no class, or a class without images.
    """
    expected = f"{folder} must be a folder that holds a folder of images for each class"
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"{expected}: {error.strerror}") from error
    if not classes:
        raise UserError(expected)
    files = {name: find_images(folder / name) for name in classes}
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise UserError(
            f"class folder {folder / empty[0]} holds no images ({', '.join(IMAGE_SUFFIXES)}); "
            f"{len(empty)} of {len(files)} classes are empty"
        )
    return files


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split; `validation` may be called `val`."""
    folder = root / split
    return root / "val" if split == "validation" and not os.path.isdir(folder) else folder


def _open_folder(root: Path, split: str) -> Source:
    folder = split_folder(root, split)
    if not os.path.isdir(folder):
        raise UserError(f"image folder {folder} does not exist: images are read from <data_dir>/<split>/<class>/*")
    records = FolderRecords(folder)
    return Source(str(folder), records, records.class_names, records.identity)


def changes(current: Mapping[str, str], saved: Mapping[str, str]) -> list[str]:
    """What differs between two identities of a source, the first three differences; nothing if one is unknown."""
    if not (current and saved):
        return []
    different = [key for key in sorted({*current, *saved}) if current.get(key) != saved.get(key)]
    shown = [f"{key}: {current.get(key, 'missing')} (checkpoint: {saved.get(key, 'missing')})" for key in different[:3]]
    return shown + ([f"{len(different) - 3:,} more"] if len(different) > 3 else [])
