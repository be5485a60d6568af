"""Finding the examples of a data set in archives and folders."""

from pathlib import Path

import pytest

from lma_jax.data import indexing
from lma_jax.data.indexing import index_archives, index_folder
from lma_jax.errors import UserError
from tests.helpers.datasets import flowers, smooth, tar, write_archives, write_folder

SPLITS = ("train", "validation")


@pytest.fixture
def archives(tmp_path) -> Path:
    write_archives(tmp_path / "archives")
    return tmp_path / "archives"


@pytest.mark.parametrize("split", SPLITS)
def test_images_that_lack_are_counted(archives, monkeypatch, split):
    counts = {"train": 29, "validation": 4}
    monkeypatch.setattr(indexing, "OFFICIAL_COUNTS", counts)
    index_archives(archives)
    monkeypatch.setitem(counts, split, 1_000)
    with pytest.raises(UserError, match=rf"holds {29 if split == 'train' else 4} images instead of 1,000.*--partial"):
        index_archives(archives)
    index_archives(archives, partial=True)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_missing_archive_is_named(archives, name):
    (archives / f"ILSVRC2012_img_{name}.tar").unlink()
    with pytest.raises(UserError, match=rf"ILSVRC2012_img_{name}.tar is missing"):
        index_archives(archives, partial=True)


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("size", [0, 100, 512, 4000, 5120, -10240])
def test_an_archive_that_was_cut_short_is_refused(archives, name, size):
    path = archives / f"ILSVRC2012_img_{name}.tar"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"ILSVRC2012_img_{name}.tar is damaged or cut short"):
        index_archives(archives, partial=True)


def test_a_synset_archive_that_was_cut_short_is_refused(archives):
    whole = tar({"n01440764_1.JPEG": smooth(1), "n01440764_2.JPEG": smooth(2)})
    path = archives / "ILSVRC2012_img_train.tar"
    for size in range(512, 4096, 512):
        if any(whole[size : size + 512]) or any(whole[size - 512 : size]):
            path.write_bytes(tar({"n01440764.tar": whole[:size], "n01443537.tar": whole}))
            with pytest.raises(UserError, match="damaged or cut short"):
                index_archives(archives, partial=True)


def test_an_archive_with_a_damaged_header_is_refused(archives):
    path = archives / "ILSVRC2012_img_val.tar"
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"ILSVRC2012_val_00000001")] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged or cut short"):
        index_archives(archives, partial=True)


def test_a_foreign_synset_is_named(archives):
    (archives / "ILSVRC2012_img_train.tar").write_bytes(tar({"n99999999.tar": tar({})}))
    with pytest.raises(UserError, match=r"'n99999999.tar' in .* is not one of ImageNet's synsets"):
        index_archives(archives, partial=True)


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.jpg"])
def test_a_foreign_validation_image_is_named(archives, name):
    (archives / "ILSVRC2012_img_val.tar").write_bytes(tar({name: smooth(0)}))
    with pytest.raises(UserError, match=rf"'{name}' in .* is not one of ImageNet's validation images"):
        index_archives(archives, partial=True)


def test_a_folder_may_call_its_second_split_validation(tmp_path):
    files = {name.replace("val/", "validation/"): content for name, content in flowers().items()}
    index = index_folder(write_folder(tmp_path, files))
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
        index_folder(write_folder(tmp_path, files))
