"""Reads checkpoints and checks their checksums."""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from lma_jax import files
from lma_jax.errors import UserError, warn
from lma_jax.preprocessing import Preprocessing, preprocessing_from
from lma_jax.registry import recorded_options

Arrays = dict[str, np.ndarray]
# Bytes of the JSON item of a checkpoint: ten times those of a network with the classes of ImageNet-21k.
RECORD_LIMIT = 2**24


class DamagedError(Exception):
    """A checkpoint is unreadable or fails its checksum."""


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says about itself.

    Attributes:
        model: name of the network.
        num_classes: number of classes.
        class_names: their names, or None where they are unknown.
        config: the recipe of the run. For imported weights, only what evaluation needs.
        metrics: row of metrics of its evaluation; empty if it has not been evaluated.
        sums: sums of the training metrics since the last evaluation.
        imported_from: file of weights that it was imported from, if any.
        registered_by: the module of a user that registered its attention, see `Placements`. It is named in errors, and
            imported only if the user says so.
        data: identity of the "train" and the "validation" data, see `Source`; empty where it is unknown.
    """

    model: str
    num_classes: int
    class_names: tuple[str, ...] | None
    config: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)
    imported_from: str = ""
    registered_by: str = ""
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the config, which alone holds the image size, mean and standard deviation."""
        return preprocessing_from(self.config)

    @property
    def model_options(self) -> dict[str, Any]:
        """The further options of the network, of `create_model`, which the config alone holds."""
        return recorded_options(self.model, self.config)

    def require_classes(self, names: Sequence[str], source: str) -> None:
        """Checks that data have the classes of the checkpoint, in the same order.

        Args:
            names: class names of the data.
            source: what the data are, for the error.

        Raises:
            UserError: the class names differ. If the checkpoint has none, only their number is compared.
        """
        known = self.class_names or names
        if len(names) != self.num_classes or tuple(known) != tuple(names):
            pairs = zip(known, names)
            first = next((f": {a!r} is called {b!r} there" for a, b in pairs if a != b), "")
            order = ", the same names in another order" if sorted(known) == sorted(names) else ""
            raise UserError(
                f"the classes of {source} are not the {self.num_classes} classes of the checkpoint{first}{order}"
            )

    def to_json(self) -> dict[str, Any]:
        """The metadata as JSON can hold them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Metadata":
        """The inverse of `to_json`.

        Raises:
            TypeError, ValueError: an entry is missing, unknown or of another type, or a value is impossible.
        """
        names = content.get("class_names")
        if not isinstance(names, list | None):
            raise TypeError("class names must be a list")
        metadata = cls(**{**content, "class_names": None if names is None else tuple(names)})
        metadata._require_sound()
        return metadata

    def _require_sound(self) -> None:
        texts = (self.model, self.imported_from, self.registered_by, *(self.class_names or ()))
        tables = (self.config, self.metrics, self.sums)
        numbers = (*self.metrics.values(), *self.sums.values())
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(table, dict) for table in tables):
            raise TypeError("names must be strings, and tables mappings")
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("metrics and sums must be numbers")
        if type(self.num_classes) is not int or not 0 < self.num_classes < 2**31:
            raise ValueError(f"{self.num_classes!r} classes")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} names of {self.num_classes} classes")
        if "image_size" in self.config:
            preprocessing_from(self.config)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in host memory, whose checksums are right.

    Attributes:
        step: number of training steps behind it.
        arrays: its arrays by path.
        metadata: what it says about itself.
    """

    step: int
    arrays: Arrays
    metadata: Metadata

    def __str__(self) -> str:
        return f"checkpoint {self.step}, a {self.metadata.model} with {self.metadata.num_classes} classes,"

    def evaluated(self) -> "Checkpoint":
        """A copy with only the evaluated weights and statistics: the moving averages if the run kept them."""
        average = {path.removeprefix("ema/"): array for path, array in self.arrays.items() if path.startswith("ema/")}
        arrays = average or self.arrays
        kept = {path: array for path, array in arrays.items() if path.startswith(("params/", "batch_stats/"))}
        return replace(self, arrays=kept)


def load_checkpoint(workdir: str | Path, step: str = "newest") -> Checkpoint:
    """Reads one checkpoint of a training workdir and checks it.

    Args:
        workdir: folder of the run.
        step: "newest" (damaged checkpoints are skipped, with a warning on stderr), "best" by validation top-1,
            or a number.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    folder = files.path_of(workdir).absolute() / "checkpoints"
    steps = saved_steps(folder)
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint: give the --workdir of a training run")
    if step == "newest":
        return newest_good(folder)
    number = _best(folder, steps) if step == "best" else step
    if number not in map(str, steps):
        raise UserError(
            f"{workdir} holds no checkpoint {step!r}; it holds {', '.join(map(str, steps))}, newest and best"
        )
    try:
        return read(folder, int(number))
    except DamagedError as error:
        raise UserError(f"checkpoint {number} of {workdir} is damaged ({error})") from error


def to_arrays(tree: Any) -> Arrays:
    """The leaves of a tree in host memory, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def record_of(arrays: Arrays, metadata: Metadata) -> dict[str, Any]:
    """The JSON item of a checkpoint: metadata, a checksum of every array, and one of the record itself."""
    checksums = {path: _checksum(array) for path, array in arrays.items()}
    record = {"metadata": metadata.to_json(), "checksums": checksums}
    return {**record, "checksum": _record_checksum(record)}


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a folder, newest first. Unfinished saves have other names."""
    if not os.path.isdir(folder):
        return []
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True)


def newest_good(folder: Path) -> Checkpoint:
    """The newest checkpoint that is not damaged; the damaged ones are named in a warning on stderr.

    Raises:
        UserError: all of them are damaged.
    """
    problems = []
    for step in saved_steps(folder):
        try:
            checkpoint = read(folder, step)
        except DamagedError as error:
            problems.append(f"{step} ({error})")
            continue
        if problems:
            warn(f"skipped damaged checkpoints {', '.join(problems)}; using {step} of {folder.parent}")
        return checkpoint
    raise UserError(f"every checkpoint in {folder} is damaged: {', '.join(problems)}")


def read(folder: Path, step: int) -> Checkpoint:
    """Reads the checkpoint `folder`/`step` and checks it.

    Raises:
        DamagedError: it is unreadable, fails its checksum, or was written by another version.
    """
    record, metadata = _read_record(folder, step)
    arrays = _read_arrays(folder / str(step) / "state", list(record["checksums"]))
    for path, array in arrays.items():
        if _checksum(array) != record["checksums"][path]:
            raise DamagedError(f"{path} differs from its checksum")
    return Checkpoint(step, arrays, metadata)


def metadata_of(folder: Path, step: int) -> Metadata:
    """Reads what the checkpoint `folder`/`step` says about itself, without its arrays.

    Raises:
        DamagedError: it is unreadable, fails its checksum, or was written by another version.
    """
    return _read_record(folder, step)[1]


def _read_record(folder: Path, step: int) -> tuple[dict[str, Any], Metadata]:
    """The JSON item of a checkpoint, which `record_of` made, and the metadata in it."""
    path = folder / str(step) / "record" / "metadata"
    try:
        if not path.is_file() or path.stat().st_size > RECORD_LIMIT:
            raise DamagedError("its metadata are no file, or too large")
        record = json.loads(path.read_bytes())
        checksum = record.pop("checksum")
        differs = _record_checksum(record) != checksum
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError("its metadata are unreadable") from error
    if differs:
        raise DamagedError("its metadata differ from their checksum")
    try:
        if not all(isinstance(value, str) for value in record["checksums"].values()):
            raise TypeError("checksums must be strings")
        return record, Metadata.from_json(record["metadata"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError("its metadata are those of another version of this project") from error


def _read_arrays(folder: Path, paths: list[str]) -> Arrays:
    """Reads an OCDBT store with one zarr array for each path."""
    try:
        with files.plain_name(folder) as plain:
            store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{plain}/"}}
            opening = {path: ts.open({"driver": "zarr", "kvstore": {**store, "path": f"{path}/"}}) for path in paths}
            reading = {path: array.result().read() for path, array in opening.items()}
            return {path: array.result() for path, array in reading.items()}
    except (ValueError, OSError, NotImplementedError) as error:
        raise DamagedError("its arrays are unreadable") from error


def _best(folder: Path, steps: list[int]) -> str:
    """The step with the highest validation top-1 among the good checkpoints."""
    accuracies = {}
    for step in steps:
        try:
            accuracies[step] = read(folder, step).metadata.metrics.get("val_top1", -1.0)
        except DamagedError as error:
            warn(f"checkpoint {step} of {folder.parent} is damaged ({error})")
    return str(max(accuracies, key=lambda step: accuracies[step], default=""))


def _checksum(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return f"{zlib.crc32(array.tobytes(), zlib.crc32(header)):08x}"


def _record_checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
