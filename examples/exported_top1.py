"""Top-1 of exported files on a folder of <class>/<image>, each in its own runtime, image by image beside the trainer.

    python examples/exported_top1.py --images val --classes classes.json network.onnx network.pt2 network.stablehlo

classes.json is what `lma_jax.predict --json` wrote for the same folder. Exits with 1 if a file has another class for
any image, or another top-1 than the trainer's.
"""

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH = 500
Network = tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]


def weights(path: Path) -> Network:
    """The network of lma_torch with the weights of a file, and the metadata."""
    import torch
    from safetensors import safe_open

    import lma_torch

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    options = dict(num_classes=metadata["num_classes"], **metadata["model_options"])
    network = lma_torch.create_model(metadata["model"], **options).eval()
    network.load_state_dict(tensors)
    return torch.no_grad()(lambda images: network(torch.from_numpy(images)).numpy()), metadata


def torch_program(path: Path) -> Network:
    """A program of torch.export, for which no code of this project is needed."""
    import torch

    files = {"metadata.json": ""}
    network = torch.export.load(path, extra_files=files).module()
    run = torch.no_grad()(lambda images: network(torch.from_numpy(images)).numpy())
    return run, json.loads(files["metadata.json"])


def onnx(path: Path) -> Network:
    """The same in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    described = session.get_modelmeta().custom_metadata_map
    metadata = {key: json.loads(value) for key, value in described.items()}
    return lambda images: session.run(None, {"images": images})[0], metadata


def stablehlo(path: Path) -> Network:
    """A serialised function of JAX, whose images are (N, H, W, 3)."""
    import jax

    with zipfile.ZipFile(path) as file:
        network = jax.jit(jax.export.deserialize(bytearray(file.read("function"))).call)
        metadata = json.loads(file.read("metadata.json"))
    return lambda images: np.asarray(network(images.transpose(0, 2, 3, 1))), metadata


READERS = {".safetensors": weights, ".pt2": torch_program, ".onnx": onnx, ".stablehlo": stablehlo}


def read_images(paths: list[Path], preprocessing: dict[str, Any]) -> np.ndarray:
    """(N, 3, H, W) float32: resized, cropped and normalised as the metadata say, by Pillow alone."""
    size, resize = preprocessing["image_size"], preprocessing["resize_size"]
    batch = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        width, height = (int(resize * side / min(image.size)) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
        batch.append(np.asarray(resized.crop((left, top, left + size, top + size))))
    normalised = (np.stack(batch) / 255 - preprocessing["mean"]) / preprocessing["std"]
    return normalised.astype(np.float32).transpose(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--classes", type=Path, required=True)
    parser.add_argument("exports", type=Path, nargs="+")
    options = parser.parse_args()
    predictions = json.loads(options.classes.read_text())["predictions"]
    expected = {row["image"]: row["class_id"] for row in predictions if row["rank"] == 1}
    names = sorted(expected)
    failed = False
    for path in options.exports:
        network, metadata = READERS[path.suffix](path)
        classes: dict[str, int] = {}
        for start in range(0, len(names), BATCH):
            part = names[start : start + BATCH]
            images = read_images([options.images / name for name in part], metadata["preprocessing"])
            classes |= dict(zip(part, map(int, network(images).argmax(1))))
        right = sum(metadata["class_names"][classes[name]] == Path(name).parts[0] for name in names)
        different = sum(classes[name] != expected[name] for name in names)
        top1, trainers = 100 * right / len(names), metadata["metrics"].get("val_top1", float("nan"))
        failed |= different > 0 or not math.isclose(top1, trainers, abs_tol=1e-4)
        print(f"{path.name}: top-1 {top1:.2f} % ({right:,} of {len(names):,}), trainer's {trainers:.2f} %", end="; ")
        print(f"another class than in JAX for {different} images")
    sys.exit(failed)


if __name__ == "__main__":
    main()
