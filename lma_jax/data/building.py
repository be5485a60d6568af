"""Writes a data set as a TFDS build in array_record format. A build that was killed is resumed."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lma_jax import files
from lma_jax.data.builds import names_digest
from lma_jax.data.indexing import Example, Index
from lma_jax.errors import UserError

# A file of an incomplete build, which identifies the examples that the build was started with.
FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Shard:
    """One file of a build."""

    path: Path
    examples: list[Example]


def build(index: Index, folder: Path, *, threads: int = 1) -> None:
    """Writes a data set to `folder`, <data_dir>/<name>/<version>.

    The folder is called <version>.incomplete until the build is complete. Shards that an earlier call has written are
    kept if the images have not changed since; a change is detected by modification time.

    Args:
        index: the examples.
        folder: the build's folder, which must not exist.
        threads: number of shards to write at a time.

    Raises:
        UserError: an image cannot be read, or a file cannot be written.
        OSError: the folder cannot be created, or an image has disappeared.
    """
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    incomplete = folder.with_name(f"{folder.name}.incomplete")
    splits, features = plan_shards(index, incomplete, folder.parent.name), build_features(index)
    shards = [shard for split in splits.values() for shard in split]
    _prepare_folder(incomplete, index, shards)
    missing = [shard for shard in shards if not _is_complete(shard)]
    total, left = (sum(len(shard.examples) for shard in some) for some in (shards, missing))
    pool = ThreadPoolExecutor(threads)
    try:
        with tqdm(total=total, initial=total - left, unit="image", disable=None) as bar:
            for written in as_completed(pool.submit(_write_shard, s, index, features, bar.update) for s in missing):
                written.result()
    finally:
        pool.shutdown(cancel_futures=True)
    infos = [_split_info(split, written) for split, written in splits.items()]
    metadata = dict(version=folder.name, features=features, split_infos=infos, supervised_keys=("image", "label"))
    metadata["description"] = f"Images of {names_digest(index.class_names)}"
    tfds.folder_dataset.write_metadata(data_dir=incomplete, check_data=False, **metadata)
    incomplete.rename(folder)
    (folder / FINGERPRINT).unlink()


def plan_shards(index: Index, folder: Path, name: str) -> dict[str, list[Shard]]:
    """Distributes the examples of each split over files as TFDS does, in the order of their hashed keys."""
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
        bounds = zip(template.sharded_filepaths(num_shards), [0, *ends], ends)
        splits[split] = [Shard(Path(path), ordered[start:end]) for path, start, end in bounds]
    return splits


def build_features(index: Index) -> Any:
    """The TFDS features of a data set: image, label and file name."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format=None if index.lossless else "jpeg"),
            "label": tfds.features.ClassLabel(names=list(index.class_names)),
            "file_name": tfds.features.Text(),
        }
    )


def _prepare_folder(folder: Path, index: Index, shards: list[Shard]) -> None:
    """Creates or empties `folder`, unless an earlier call has written shards of the same images to it."""
    digest = hashlib.sha256(repr((index.class_names, index.lossless)).encode())
    for shard in shards:
        digest.update(repr((shard.path.name, shard.examples)).encode())
    for path in sorted({example.path for shard in shards for example in shard.examples}):
        digest.update(repr(path.stat().st_mtime_ns).encode())
    fingerprint = folder / FINGERPRINT
    if not fingerprint.exists() or fingerprint.read_text() != digest.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files.write(fingerprint, digest.hexdigest())


def _is_complete(shard: Shard) -> bool:
    from array_record.python.array_record_module import ArrayRecordReader

    return shard.path.exists() and ArrayRecordReader(str(shard.path)).num_records() == len(shard.examples)


def _write_shard(shard: Shard, index: Index, features: Any, progress: Callable[[], object]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(features.get_serialized_info())
    with files.replacing(shard.path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), "group_size:1")
            for example in shard.examples:
                fields = {"image": _encoded_image(example, index), "label": example.label, "file_name": example.key}
                record = serializer.get_tf_example(features.encode_example(fields))
                writer.write(record.SerializeToString(deterministic=True))
                progress()
            writer.close()
        except RuntimeError as error:  # such as a full disk
            raise UserError(f"cannot write {shard.path}: {error}") from error


def _encoded_image(example: Example, index: Index) -> bytes:
    """The image file as it is stored in the build: unchanged if it needs no repair, or encoded anew in RGB."""
    from lma_jax.images import BadImageError, decode, open_by_pillow, open_file, room_for

    try:
        with open_file(example.path) as file:
            encoded = os.pread(file.fileno(), example.size, example.offset)
        with open_by_pillow(encoded) as image:
            is_jpeg = image.format in ("JPEG", "MPO")  # MPO: a camera's JPEG with a second picture appended
            if image.mode != "CMYK" and (is_jpeg or (index.lossless and image.format == "PNG")):
                return encoded
        with room_for(encoded):
            rgb = decode(encoded)
    except BadImageError as error:
        raise UserError(f"{example.key} in {example.path} is no image that Pillow can read: {error}") from error
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG" if is_jpeg or not index.lossless else "PNG", quality=100, subsampling=0)
    return buffer.getvalue()


def _split_info(split: str, shards: list[Shard]) -> Any:
    import tensorflow_datasets as tfds

    num_bytes = sum(shard.path.stat().st_size for shard in shards)
    return tfds.core.SplitInfo(name=split, shard_lengths=[len(s.examples) for s in shards], num_bytes=num_bytes)
