"""Random-access sources of encoded images."""

import contextlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lma_jax.errors import UserError
from lma_jax.images import IMAGE_SUFFIXES, find_images, read_file

# The embedded digits by name and version, as every build may be called.
DIGITS = "digits:1.0.0"


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
    """

    name: str
    records: Records
    class_names: tuple[str, ...]

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
        return _open_folder(Path(data_dir), split)
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    if split not in builder.info.splits:
        whole = " (a part or a sum of splits is none)" if re.search(r"[\[+]", split) else ""
        raise UserError(f"data set {name!r} has no split {split!r}{whole}; it has {', '.join(builder.info.splits)}")
    if not {"image", "label"} <= set(builder.info.features):
        raise UserError(f"data set {name!r} is not for image classification: it has no image and label")
    _require_whole(builder, name, split)
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return Source(f"{name} {split}", records, tuple(builder.info.features["label"].names))


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
    return root / "val" if split == "validation" and not folder.is_dir() else folder


def _open_folder(root: Path, split: str) -> Source:
    folder = split_folder(root, split)
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist: images are read from <data_dir>/<split>/<class>/*")
    records = FolderRecords(folder)
    return Source(str(folder), records, records.class_names)


def _require_whole(builder: Any, name: str, split: str) -> None:
    """Counts the examples of every file, since a truncated file opens without an error."""
    from array_record.python.array_record_module import ArrayRecordReader

    for file in builder.info.splits[split].file_instructions:
        found = ArrayRecordReader(file.filename).num_records() if Path(file.filename).is_file() else 0
        if found != file.examples_in_shard:
            raise UserError(
                f"{file.filename} of data set {name!r} is missing or damaged: it holds {found:,} of "
                f"{file.examples_in_shard:,} examples. Prepare the data set again"
            )


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    if name in ("digits", DIGITS):
        return _digits_builder(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        raise UserError(f"TFDS knows no data set {name!r} in {_shown(data_dir)}") from error
    except AssertionError as error:
        raise UserError(f"TFDS knows no such version: {str(error).splitlines()[0]}") from error
    path = Path(builder.data_path)
    if not path.exists():
        raise UserError(
            f"data set {name!r} is not in {_shown(data_dir)}; prepare it once with "
            + _prepare_command(name.partition(":")[0], _shown(data_dir))
        )
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"data set {name!r} in {path} has the format {builder.info.file_format.value}, which has no random access; "
            "convert it once with `pip install tensorflow && python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={path} --out_file_format=array_record --out_dir=<data_dir>/{name}/{path.name}`"
        )
    return builder


def _prepare_command(name: str, data_dir: str) -> str:
    if name == "imagenet2012":
        return f"`python -m lma_jax.data.prepare --archives=<folder of the two official .tar> --data_dir={data_dir}`"
    return f"`pip install tensorflow && tfds build {name} --file_format=array_record --data_dir={data_dir}`"


def _digits_builder(data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    from lma_jax.data.digits import Digits

    def build() -> Any:
        builder = Digits(data_dir=data_dir or None, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that does not happen
            builder.download_and_prepare()
        return builder

    tfds.disable_progress_bar()
    try:
        try:
            return build()
        except OSError:
            return build()  # unless another process has built them meanwhile, it fails again
    except OSError as error:
        raise UserError(f"cannot build the digits in {_shown(data_dir)}: {error}") from error


def _shown(data_dir: str) -> str:
    return data_dir or "~/tensorflow_datasets"
