"""Which files are images, how they are decoded, and the pixels of evaluation."""

import ast
import contextlib
import io
import os
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lma_jax import images
from lma_jax.data.indexing import index_folder
from lma_jax.data.sources import open_source
from lma_jax.data.transforms import Augmentation, train_image
from lma_jax.errors import UserError
from lma_jax.images import BadImageError, decode, decode_pixels, eval_image, find_images, image_files, read_image
from lma_jax.preprocessing import Preprocessing
from tests.helpers.commands import ROOT
from tests.helpers.images import (
    BAD_FILES,
    INTACT_JPEGS,
    ODD_FILES,
    PICTURE,
    encode,
    grey,
    jpeg_claiming,
    noise,
    photo,
    png_claiming,
    with_scans,
)

SMALL = Preprocessing(image_size=8, resize_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)

# Files below a folder, sorted, and whether each is one of its images.
TREE = {
    ".hidden.png": False,
    ".thumbnails/a.png": False,
    "B.PNG": True,
    "a.jpg": True,
    "a/.hidden.jpg": False,
    "a/deep/er/c.Webp": True,
    "a/deep/notes.txt": False,
    "a/e.jpeg": True,
    "a/jpg": False,
    "a/z.jpg.txt": False,
    "folder.png/d.TIFF": True,
    "label": False,
}
FOUND = [name for name, found in TREE.items() if found]


def train(encoded: bytes) -> np.ndarray:
    return train_image(encoded, np.random.default_rng(0), Augmentation(8, (1.0, 1.0), flip=False, rand_augment=0.0))


def plant(folder: Path) -> Path:
    for name in TREE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(grey(0))
    (folder / "empty.jpg").mkdir()
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.jpg").symlink_to(folder / "nothing")
    return folder


def test_images_are_found_at_any_depth_in_sorted_order(tmp_path):
    assert find_images(plant(tmp_path)) == sorted([*FOUND, "link.jpg"])


def test_training_building_and_commands_see_the_same_images(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            plant(tmp_path / split / name)
    expected = [f"{name}/{path}" for name in ("cat", "dog") for path in sorted([*FOUND, "link.jpg"])]
    index = index_folder(tmp_path)
    for split, folder in (("train", "train"), ("validation", "val")):
        source = open_source("folder", split, data_dir=str(tmp_path))
        assert [source.records[number]["file_name"] for number in range(len(source))] == expected
        assert [example.key for example in index.splits[split]] == expected
        assert image_files(tmp_path / folder) == [tmp_path / folder / name for name in expected]
        labels = [source.records[number]["label"] for number in range(len(source))]
        assert [example.label for example in index.splits[split]] == labels == [0] * 6 + [1] * 6
    assert source.class_names == index.class_names == ("cat", "dog")


@pytest.mark.parametrize("command", ["lma_jax/gradcam.py", "convert/pair.py"])
def test_commands_find_images_by_image_files_alone(command):
    nodes = [*ast.walk(ast.parse((ROOT / command).read_text()))]
    called = {getattr(node.func, "id", getattr(node.func, "attr", "")) for node in nodes if isinstance(node, ast.Call)}
    assert {"image_files", "read_image"} <= called
    assert not called & {"glob", "rglob", "iterdir", "scandir", "listdir", "walk"}


def test_a_tool_takes_a_file_whatever_its_name_or_a_folder_with_images(tmp_path):
    (tmp_path / "cat").write_bytes(noise())
    assert image_files(tmp_path / "cat") == [tmp_path / "cat"]
    with pytest.raises(UserError, match=r"folder .* holds no images \(.jpg, "):
        image_files(tmp_path)
    with pytest.raises(UserError, match=r"image .*dog.jpg does not exist"):
        image_files(tmp_path / "dog.jpg")


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
def test_only_regular_files_are_read(tmp_path, kind):
    """Where a FIFO would wait for ever."""
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(noise())
    path = folder / "b.jpg"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(folder):
        if kind == "FIFO":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            listener.bind(path.name)  # whose length is limited
    assert find_images(folder) == ["a.jpg"]
    with pytest.raises(UserError, match=r"image .*b.jpg is neither a regular file nor a folder"):
        image_files(path)
    with pytest.raises(UserError, match=r"b.jpg.*: No such device|b.jpg cannot be decoded .*\(not a regular file\)"):
        read_image(path, SMALL)


def test_a_file_that_became_a_fifo_is_a_bad_image(tmp_path):
    """After the folder was read."""
    path = tmp_path / "train" / "cat" / "a.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(noise())
    records = open_source("folder", "train", data_dir=str(tmp_path)).records
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadImageError, match="not a regular file"):
        records[0]


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"1,099,511,627,776 bytes, more than 540,000,000"):
        read_image(tmp_path / "sparse.jpg", SMALL)


def test_a_link_to_itself_is_no_image(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    assert find_images(tmp_path) == []
    with pytest.raises(UserError, match="does not exist"):
        image_files(tmp_path / "a.jpg")


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read folder .*missing/: No such file"):
        find_images(tmp_path / "missing")


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cat.png").write_bytes(noise())
    (tmp_path / "cut.png").write_bytes(noise()[:-30])
    np.testing.assert_array_equal(read_image(tmp_path / "cat.png", SMALL), eval_image(noise(), SMALL))
    with pytest.raises(UserError, match=r"cut.png cannot be decoded as an image"):
        read_image(tmp_path / "cut.png", SMALL)
    with pytest.raises(UserError, match=r"cannot read .*dog.png: No such file"):
        read_image(tmp_path / "dog.png", SMALL)


def test_evaluation_pixels_are_a_resize_then_the_centre():
    image = eval_image(noise(), Preprocessing(image_size=12, resize_size=20, mean=(0,) * 3, std=(1,) * 3))
    expected = Image.open(io.BytesIO(noise())).resize((25, 20), Image.Resampling.BILINEAR).crop((6, 4, 18, 16))
    assert np.abs(image.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("quality", [30, 75, 96])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_evaluation_pixels_are_those_of_pillow(quality, subsampling):
    """At most 0.02 grey levels in the mean and 1 anywhere from Pillow's decoding, crop and resize."""
    encoded = encode(photo((401, 333), quality + subsampling), "jpeg", quality=quality, subsampling=subsampling)
    original = Image.open(io.BytesIO(encoded)).convert("RGB")
    expected = original.resize((134, 112), Image.Resampling.BILINEAR).crop((19, 8, 115, 104))
    pixels = eval_image(encoded, Preprocessing(image_size=96, resize_size=112, mean=(0,) * 3, std=(1,) * 3))
    difference = np.abs(pixels.astype(int) - np.asarray(expected))
    assert difference.mean() <= 0.02
    assert difference.max() <= 1


@pytest.mark.parametrize("kind", ODD_FILES)
def test_any_kind_of_image_is_read_upright_and_in_rgb(kind):
    encoded, expected = ODD_FILES[kind]
    image = decode(encoded)
    assert (image.mode, image.size) == ("RGB", expected.size)
    part = (slice(None, None, 1 + image.height // 100), slice(None, None, 1 + image.width // 100))
    difference = np.asarray(image)[part].astype(int) - np.asarray(expected.convert("RGB"))[part]
    assert np.abs(difference).mean() < 12  # what a palette loses; another picture, or a turned one, is at 60
    np.testing.assert_array_equal(decode_pixels(encoded)[part], np.asarray(image)[part])
    pixels = eval_image(encoded, SMALL)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (8, 8, 3))


@pytest.mark.parametrize("kind", INTACT_JPEGS)
def test_an_intact_jpeg_is_read_whatever_else_is_wrong_with_it(kind):
    """With Pillow's pixels."""
    expected = np.asarray(Image.open(io.BytesIO(INTACT_JPEGS[kind])).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(INTACT_JPEGS[kind])), expected)
    np.testing.assert_array_equal(decode_pixels(INTACT_JPEGS[kind]), expected)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_whole_image_is_refused_never_guessed(kind):
    message = "10000 x 9001 pixels, more than 90,000,000" if kind.startswith("bomb") else None
    for read in (decode, decode_pixels):
        with pytest.raises(BadImageError, match=message):
            read(BAD_FILES[kind])


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_the_limit_of_pixels_is_inclusive(monkeypatch, file_format):
    encoded = encode(PICTURE, file_format)
    monkeypatch.setattr(images, "MAX_PIXELS", 90 * 60)
    assert decode(encoded).size == (90, 60)
    monkeypatch.setattr(images, "MAX_PIXELS", 90 * 60 - 1)
    with pytest.raises(BadImageError, match="90 x 60 pixels, more than 5,399"):
        decode(encoded)


def test_images_of_90_megapixels_are_allowed():
    """They exceed the size at which Pillow warns, and a warning is an error here."""
    assert images.jpeg_header(jpeg_claiming(10_000, 9_000)) == (9_000, 10_000, "Gray")
    with pytest.raises(BadImageError) as error:
        decode(png_claiming(10_000, 9_000))
    assert "more than" not in str(error.value)  # but that the file is cut short


def test_scans_are_limited():
    """A progressive JPEG of Pillow has 10, and no file is decoded to find out how many there are."""
    decode(with_scans(0))
    with pytest.raises(BadImageError, match="a JPEG of 33 scans, more than 32"):
        decode(with_scans(23))
    with pytest.raises(BadImageError, match="a JPEG of 1,010 scans, more than 32"):
        decode(with_scans(1000))


def test_threads_wait_until_there_is_room_for_their_image(monkeypatch):
    """In the order in which they came, so that a large image is not overtaken for ever."""
    room = images._Room(100)
    sizes = [30, 60, 90, 10, 1000, 100, 1] * 20
    inside, most, lock = 0, 0, threading.Lock()

    def take(size: int) -> None:
        nonlocal inside, most
        with room.taken(size):
            with lock:
                inside += min(size, 100)
                most = max(most, inside)
            with lock:
                inside -= min(size, 100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(take, sizes))
    assert most <= 100
    with room.taken(100), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(take, 1)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.05)
        room._free += 1
        with room._change:
            room._change.notify()
        waiting.result(timeout=10)


@pytest.mark.parametrize("read", [lambda encoded: eval_image(encoded, SMALL), train])
@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG without subsampling", "PNG"])
def test_every_image_takes_room(monkeypatch, read, kind):
    """A progressive JPEG thrice that of its pixels, for its coefficients; and gives it back."""
    taken = []
    room = images._Room(10**6)

    def spy(size: int):
        taken.append(size)
        return room.taken(size)

    monkeypatch.setattr(images, "_room", SimpleNamespace(taken=spy))
    read(ODD_FILES[kind][0])
    assert taken == [90 * 60 * (3 if "progressive" in kind else 1)]
    with pytest.raises(BadImageError):
        read(BAD_FILES["JPEG with a zeroed range"])
    assert room._free == 10**6


@pytest.mark.parametrize(
    "error", [struct.error("short"), SyntaxError("odd"), MemoryError(), RecursionError("deep"), zlib.error("broken")]
)
def test_whatever_a_parser_raises_is_a_bad_image(monkeypatch, error):
    def broken(*args, **options):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(BadImageError, match=str(error) or type(error).__name__):
        decode(grey(0))
