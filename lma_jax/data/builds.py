"""TFDS builds in array_record format, read without TensorFlow, and checked: TFDS passes over some damage in silence."""

import contextlib
import io
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lma_jax import files
from lma_jax.errors import UserError
from lma_jax.images import BadImageError

LABELS = "label.labels.txt"
# The embedded digits by name and version, as every build may be called.
DIGITS = "digits:1.0.0"


class BuildRecords:
    """The examples of one split of a build.

    Attributes:
        class_names: names of the labels 0, 1, ...
    """

    def __init__(self, builder: Any, split: str, class_names: tuple[str, ...]):
        import tensorflow_datasets as tfds

        self._files = [(Path(file.filename), file.examples_in_shard) for file in _files(builder, split)]
        self._name = builder.info.full_name
        self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._records[index]
        except Exception as error:  # array_record, protobuf and TFDS raise many kinds
            raise BadImageError(f"its record in the build is damaged: {_first_line(error)}") from error
        if not 0 <= record["label"] < len(self.class_names):
            raise BadImageError(f"its label {record['label']} is none of the {len(self.class_names):,} classes")
        return record

    def identity(self) -> dict[str, str]:
        """The name and version of the build, its classes, the number of its examples, and a digest of its files."""
        described = [(path.name, examples, path.stat().st_size) for path, examples in self._files]
        digest = zlib.crc32(repr(described).encode())
        classes = {f"class {label}": name for label, name in enumerate(self.class_names)}
        return {"build": self._name, "examples": f"{len(self):,}", "files": f"digest {digest:08x}", **classes}


def open_build(name: str, split: str, *, data_dir: str) -> BuildRecords:
    """Opens one split of a build.

    Args:
        name: "digits" (built when missing), or a name that TFDS knows or finds in `data_dir`.
        split: such as "train".
        data_dir: folder of the builds; TFDS's default if empty.

    Raises:
        UserError: the build or the split is missing, the build is damaged or has no random access, or it is not for
            image classification.
    """
    import tensorflow_datasets as tfds

    folder = files.path_of(data_dir or tfds.core.constants.DATA_DIR).absolute()
    files.require_utf8(folder, "TFDS")
    try:
        builder = _builder(name, data_dir)
        _require_images(builder, name, split)
        _require_whole(builder, name, split)
        return BuildRecords(builder, split, _class_names(builder))
    except UserError:
        raise
    except Exception as error:  # TFDS raises many kinds for damaged files
        build = folder / re.split("[/:]", name)[0]
        if os.path.isdir(build):
            raise UserError(f"{_damaged(name, build)} ({_first_line(error)}). {AGAIN}") from error
        raise UserError(f"TFDS knows no data set {name!r} in {_shown(data_dir)}") from error


def names_digest(class_names: Sequence[str]) -> str:
    """A description of the class names, which `prepare` writes into a build: nothing else protects its file of them."""
    return f"{len(class_names)} classes, digest {zlib.crc32(repr(tuple(class_names)).encode()):08x}"


AGAIN = "Delete that folder and prepare the data set again"


def _damaged(name: str, path: Path) -> str:
    return f"data set {name!r} in {path} is damaged"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _files(builder: Any, split: str) -> list[Any]:
    return builder.info.splits[split].file_instructions


def _require_images(builder: Any, name: str, split: str) -> None:
    import tensorflow_datasets as tfds

    splits, features = builder.info.splits, builder.info.features
    if not splits:
        raise UserError(f"{_damaged(name, builder.data_path)}: it describes no splits. {AGAIN}")
    if split not in splits:
        whole = " (a part or a sum of splits is none)" if re.search(r"[\[+]", split) else ""
        raise UserError(f"data set {name!r} has no split {split!r}{whole}; it has {', '.join(splits)}")
    if splits[split].num_examples <= 0:
        raise UserError(f"{_damaged(name, builder.data_path)}: its split {split!r} has no examples. {AGAIN}")
    if not ({"image", "label"} <= set(features) and isinstance(features["label"], tfds.features.ClassLabel)):
        raise UserError(f"data set {name!r} is not for image classification: it has no image and label")


def _class_names(builder: Any) -> tuple[str, ...]:
    """The names of the labels.

    Raises:
        ValueError: the file of names is damaged, which TFDS passes over: the labels are then called 0, 1, ...
    """
    label, path = builder.info.features["label"], Path(builder.data_path)
    names = tuple(label.names)
    lines = (path / LABELS).read_text("utf-8").split("\n") if (path / LABELS).exists() else []
    stored = [line.strip() for line in lines if line.strip()]
    described = re.search(r"\d+ classes, digest \w{8}", builder.info.description or "")
    if described and described[0] != names_digest(names):
        raise ValueError(f"{LABELS} does not hold the {described[0]}")
    if not len(names) == len(set(names)) == label.num_classes or (lines and stored != [name.strip() for name in names]):
        raise ValueError(f"{LABELS} does not name {label.num_classes} classes")
    return names


def _require_whole(builder: Any, name: str, split: str) -> None:
    """Counts the examples of every file, since a truncated file opens without an error."""
    from array_record.python.array_record_module import ArrayRecordReader

    for file in _files(builder, split):
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
    except AssertionError as error:
        raise UserError(f"TFDS knows no such version: {_first_line(error)}") from error
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
