"""Prepares data for training without TensorFlow: ImageNet from its two official archives, or a folder of images.

python -m lma_jax.data.prepare --archives <folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar>
python -m lma_jax.data.prepare --folder <folder of train/<class>/* and val/<class>/*> --name flowers

It writes a TFDS build in array_record format; that of ImageNet has the features, labels and order of TFDS's own
imagenet2012. Archives are not unpacked. The same command resumes a run that was killed.
"""

import os
import re

from absl import flags

from lma_jax import cli, files
from lma_jax.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("archives", None, "Folder of the two official archives of ImageNet.")
    flags.DEFINE_bool("partial", False, "With --archives: accept archives that lack images.")
    flags.DEFINE_string("folder", None, "Folder of train/<class>/* and val/<class>/*; images may lie deeper.")
    flags.DEFINE_string("name", None, "With --folder: name of the data set.")
    flags.DEFINE_string("data_dir", None, "Folder of the builds. Default: TFDS's, ~/tensorflow_datasets.")
    flags.DEFINE_integer("threads", os.cpu_count() or 1, "Files to write at a time.", lower_bound=1)


def main() -> None:
    import tensorflow_datasets as tfds

    from lma_jax.data.building import build
    from lma_jax.data.indexing import index_archives, index_folder

    options = flags.FLAGS
    if bool(options.archives) == bool(options.folder):
        raise UserError("give one source of images: --archives=<folder>, or --folder=<folder> and --name=<name>")
    name, version = ("imagenet2012", "5.1.0") if options.archives else (_checked_name(options.name or ""), "1.0.0")
    data_dir = files.path_of(options.data_dir or tfds.core.constants.DATA_DIR).absolute()
    files.require_utf8(data_dir, "TFDS")
    images, folder = files.path_of(options.archives or options.folder).absolute(), data_dir / name / version
    usage = f"use it with --config.dataset={name} --config.data_dir={data_dir}"
    if folder.exists():
        print(f"{folder} already exists (delete it to prepare it anew): {usage}")
        return
    files.require_writable(folder)
    try:
        index = index_archives(images, partial=options.partial) if options.archives else index_folder(images)
        build(index, folder, threads=options.threads)
    except OSError as error:
        raise UserError(str(error)) from error
    counts = " and ".join(f"{len(examples):,} {split}" for split, examples in index.splits.items())
    print(f"wrote {counts} images of {len(index.class_names):,} classes to {folder}: {usage}")


def _checked_name(name: str) -> str:
    import tensorflow_datasets as tfds

    taken = {"digits", "folder", *tfds.list_builders(with_community_datasets=False)}
    if not name:
        raise UserError("--folder needs --name as well, the name of the data set")
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in taken:
        raise UserError(f"--name={name} must be a word of a-z, 0-9 and _, and not the name of another data set")
    return name


if __name__ == "__main__":
    cli.run(main, define_flags)
