"""Archives in ImageNet's layout and folders of images, as a user has them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.images import encode

SYNSETS = ("n15075141", "n01440764", "n02105855", "n01443537")  # the archive's order is not that of the labels
CMYK, DISGUISED_PNG = "n01443537_2.JPEG", "n02105855_2933.JPEG"
ANSWERS = {1: "n01751748", 2: "n09193705", 3: "n02105855", 50_000: "n02437616"}


def smooth(seed: int, file_format: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """A smooth image, which JPEG preserves, different for each seed."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    image = Image.fromarray(corners).resize((24 + seed % 5, 20), Image.Resampling.BILINEAR).convert(mode)
    return encode(image, file_format, **options)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def imagenet_images() -> dict[str, dict[str, bytes]]:
    """What the archives hold, by split and file name."""
    train = {f"{synset}_{n}.JPEG": smooth(10 * s + n) for s, synset in enumerate(SYNSETS) for n in range(7)}
    train[CMYK] = smooth(100, mode="CMYK", quality=95)
    train[DISGUISED_PNG] = smooth(101, "PNG")
    validation = {f"ILSVRC2012_val_{n:08d}.JPEG": smooth(200 + n, mode="L" if n == 2 else "RGB") for n in ANSWERS}
    return {"train": train, "validation": validation}


def write_archives(folder: Path) -> dict[str, dict[str, bytes]]:
    images = imagenet_images()
    synsets = {
        f"{synset}.tar": tar({name: image for name, image in images["train"].items() if name.startswith(synset)})
        for synset in SYNSETS
    }
    folder.mkdir(exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(synsets))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(dict(reversed(images["validation"].items()))))
    return images


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def flowers() -> dict[str, bytes]:
    return {
        "train/tulip/early/a.jpg": smooth(0),
        "train/tulip/b.JPG": smooth(1, mode="CMYK", quality=95),
        "train/rose/a.png": smooth(2, "PNG", "RGBA"),
        "train/rose/b.bmp": smooth(3, "BMP"),
        "train/rose/camera.jpg": smooth(8, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
        "train/aster/a.Webp": smooth(4, "WEBP", lossless=True),
        "train/aster/b.gif": smooth(5, "GIF", "P"),
        "train/aster/.hidden.png": b"",
        "train/aster/notes.txt": b"",
        "train/.thumbnails/a.png": b"",
        "val/rose/c.tiff": smooth(6, "TIFF"),
        "val/tulip/c.jpeg": smooth(7),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
