"""Random-access sources of encoded images."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lma_jax.errors import UserError


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        records: by index, {"image": the encoded file (bytes), "label": the class (int)}.
        num_classes: number of classes; labels are below it.
    """

    records: Sequence[dict[str, Any]]
    num_classes: int

    def __len__(self) -> int:
        return len(self.records)


def open_source(name: str, split: str, *, data_dir: str = "") -> Source:
    """Opens one split of a TFDS image-classification build in array_record format; builds `digits` when missing.

    Args:
        name: TFDS name, such as "imagenet2012", or "digits".
        split: TFDS split, such as "train" or "validation".
        data_dir: folder of the builds; TFDS's own default (~/tensorflow_datasets) when empty.

    Raises:
        UserError: the data set, the split or a file of it is missing; the message says how to prepare it.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    if split not in builder.info.splits:
        raise UserError(f"data set {name!r} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    _require_whole(builder, name, split)
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return Source(records, builder.info.features["label"].num_classes)


def _require_whole(builder: Any, name: str, split: str) -> None:
    """Counts the examples of every file: a truncated one opens without complaint."""
    from array_record.python.array_record_module import ArrayRecordReader

    for file in builder.info.splits[split].file_instructions:
        found = ArrayRecordReader(file.filename).num_records() if Path(file.filename).is_file() else 0
        if found != file.examples_in_shard:
            raise UserError(
                f"{file.filename} of data set {name!r} is missing or damaged, it holds {found:,} of "
                f"{file.examples_in_shard:,} examples: prepare the data set again"
            )


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    options: dict[str, Any] = dict(data_dir=data_dir or None, file_format="array_record")
    if name == "digits":
        return _digits_builder(options)
    try:
        builder = tfds.builder(name, **options)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        raise UserError(f"TFDS knows no data set {name!r} in {_shown(data_dir)}") from error
    if not Path(builder.data_path).exists():
        raise UserError(
            f"data set {name!r} is not in {_shown(data_dir)}; prepare it once with "
            f"`pip install tensorflow && tfds build {name} --file_format=array_record --data_dir={_shown(data_dir)}` "
            "(for imagenet2012 add --manual_dir=<the folder of the two official .tar archives>)"
        )
    return builder


def _digits_builder(options: dict[str, Any]) -> Any:
    import tensorflow_datasets as tfds

    from lma_jax.data.digits import Digits

    try:
        builder = Digits(**options)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download; there is none
            builder.download_and_prepare()
    except OSError as error:
        raise UserError(f"cannot build the digits in {_shown(options['data_dir'])}: {error}") from error
    return builder


def _shown(data_dir: str | None) -> str:
    return data_dir or "~/tensorflow_datasets"
