"""A detector of torchvision on a backbone of this project, trained on drawings of circles, rectangles and triangles.

    python examples/detection.py --weights runs/r50 [--model resnet50_lma] [--detector fasterrcnn|retinanet]
        [--steps 300] [--output runs/detection]

Prints the loss, and average precision and recall at an IoU of 0.5 on drawings that were not trained on; writes the
detector's weights and a picture of the boxes that it finds. `--weights` is a run of lma_jax.train or a file of weights,
as in lma_torch.create_model; without it, the backbone starts from random weights.

The detector is built as torchvision's: with pretrained weights, every BatchNorm is frozen and so are the layers up to
C2, since batches are small. Images are normalised with ImageNet's mean and standard deviation, as they are by
lma_jax.train unless the recipe says otherwise. It needs torchvision (pip install torchvision), and JAX to read a run.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lma_torch
from drawings import CLASSES, Drawing, draw
from lma_jax.errors import UserError

try:
    from torchvision.io import write_png
    from torchvision.models.detection import FasterRCNN, RetinaNet
    from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, box_iou
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
    from torchvision.utils import draw_bounding_boxes, make_grid
except ImportError as error:
    raise SystemExit(f"error: the package torchvision is missing: pip install torchvision ({error})") from error

CHANNELS = 256  # of the pyramid
Detections = dict[str, Tensor]  # boxes (n, 4), labels (n,) from 1, scores (n,)


class BackboneWithFPN(nn.Module):
    """A network of feature maps with a pyramid on top: torchvision's module of this name for networks of lma_torch."""

    def __init__(self, body, extra_blocks):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), CHANNELS, extra_blocks)
        self.out_channels = CHANNELS  # the detectors read it

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(index): x for index, x in enumerate(self.body(images))})


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts torchvision's FrozenBatchNorm2d, with the same values, in the place of every BatchNorm2d."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)


def freeze_until(body: nn.Module, last: str) -> None:
    """Freezes the parameters of all layers up to the one of the name `last`."""
    names = [name for name, _ in body.named_parameters()]
    count = 1 + max(index for index, name in enumerate(names) if name.startswith(f"{last}."))
    for parameter in list(body.parameters())[:count]:
        parameter.requires_grad_(False)


def create_detector(kind: str, model: str, *, weights: str | None, image_size: int) -> nn.Module:
    """Faster R-CNN on the maps C2 to C5, or RetinaNet on C3 to C5, for CLASSES and a background."""
    first = 1 if kind == "fasterrcnn" else 2
    body = lma_torch.create_model(model, weights=weights, features_only=True, out_indices=range(first, 5))
    if weights:
        freeze_batch_norm(body)
        freeze_until(body, body.maps[1][2])
    options = dict(num_classes=1 + len(CLASSES), min_size=image_size, max_size=image_size)
    if kind == "fasterrcnn":
        # Fewer boxes than for photographs: they would be most of the work.
        options |= dict(box_batch_size_per_image=64, rpn_post_nms_top_n_test=100)
        return FasterRCNN(BackboneWithFPN(body, LastLevelMaxPool()), **options)
    return RetinaNet(BackboneWithFPN(body, LastLevelP6P7(CHANNELS, CHANNELS)), **options)


def to_inputs(drawings: Iterable[Drawing], device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, H, W) in [0, 1] and their boxes, as the detectors take them; label 0 is the background."""
    images, targets = [], []
    for drawing in drawings:
        images.append(torch.tensor(drawing.image, device=device).permute(2, 0, 1) / 255)
        boxes, labels = (torch.tensor(array, device=device) for array in (drawing.boxes, drawing.labels + 1))
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def train(detector: nn.Module, *, steps: int, batch_size: int, image_size: int, device: torch.device) -> list[float]:
    """Trains on new drawings in every step, and returns the loss of each."""
    rng = np.random.default_rng(0)
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    losses: list[float] = []
    detector.train()
    for step in range(1, steps + 1):
        loss = sum(detector(*to_inputs((draw(rng, size=image_size) for _ in range(batch_size)), device)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % LOG_EVERY == 0:
            print(f"step {step}/{steps}  loss {np.mean(losses[-LOG_EVERY:]):.3f}", flush=True)
    return losses


LEARNING_RATE = 3e-4
LOG_EVERY = 20


@torch.no_grad()
def detect(detector: nn.Module, drawings: Sequence[Drawing], device: torch.device) -> list[Detections]:
    """The boxes that are found in each drawing, by falling score."""
    detector.eval()
    images, _ = to_inputs(drawings, device)
    found = [detector([image])[0] for image in images]
    return [{name: value.cpu() for name, value in detections.items()} for detections in found]


def average_precision(found: Sequence[Detections], drawings: Sequence[Drawing]) -> tuple[float, float]:
    """Average precision and recall at an IoU of 0.5, as means over the classes.

    The precision is the area under its curve over the recall, each value being the highest at this recall or a larger
    one. For the recall, boxes with a score of at least 0.5 count.
    """
    results = [_of_class(found, drawings, label) for label in range(len(CLASSES))]
    precision, recall = np.mean(results, axis=0)
    return float(precision), float(recall)


def _of_class(found: Sequence[Detections], drawings: Sequence[Drawing], label: int) -> tuple[float, float]:
    scores, hits = [], []
    for detections, drawing in zip(found, drawings):
        mine = detections["labels"] == label + 1
        overlaps = box_iou(detections["boxes"][mine], torch.tensor(drawing.boxes[drawing.labels == label])).numpy()
        for overlap in overlaps:  # by falling score; every true box is found once
            hit = overlap.max(initial=0) >= 0.5
            if hit:
                overlaps[:, overlap.argmax()] = 0
            hits.append(hit)
        scores += detections["scores"][mine].tolist()
    count = sum((drawing.labels == label).sum() for drawing in drawings)
    hit = np.array(hits, bool)[np.argsort(scores)[::-1]]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return highest[hit].sum() / count, hit[: (np.array(scores) >= 0.5).sum()].sum() / count


def write_picture(path: Path, found: Sequence[Detections], drawings: Sequence[Drawing]) -> None:
    """Writes drawings, three times as large, with the boxes whose score is at least 0.5."""
    tiles = []
    for detections, drawing in zip(found, drawings):
        image = torch.tensor(drawing.image).permute(2, 0, 1).repeat_interleave(3, 1).repeat_interleave(3, 2)
        boxes, labels, scores = (
            detections[name][detections["scores"] >= 0.5] for name in ("boxes", "labels", "scores")
        )
        captions = [f"{CLASSES[label - 1]} {score:.2f}" for label, score in zip(labels, scores)]
        style = dict(colors="white", width=2, label_colors="black", fill_labels=True)
        tiles.append(draw_bounding_boxes(image, 3 * boxes, captions, **style) if captions else image)
    write_png(make_grid(tiles, nrow=4), str(path))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50_lma", help="one of lma_torch.list_models(); %(default)s")
    parser.add_argument("--detector", default="fasterrcnn", choices=("fasterrcnn", "retinanet"))
    parser.add_argument("--weights", help="run folder of lma_jax, or a .safetensors or .pth file")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--image_size", type=int, default=64, help="side of the drawings in pixels; %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/detection"))
    return parser.parse_args()


def main() -> None:
    options, start = parse(), time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    image_size = options.image_size
    detector = create_detector(options.detector, options.model, weights=options.weights, image_size=image_size)
    detector.to(device)
    losses = train(detector, steps=options.steps, batch_size=options.batch_size, image_size=image_size, device=device)
    rng = np.random.default_rng(1)
    drawings = [draw(rng, size=image_size) for _ in range(100)]
    found = detect(detector, drawings, device)
    precision, recall = average_precision(found, drawings)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.save(detector.state_dict(), options.output / "detector.pth")
    write_picture(options.output / "detections.png", found[:12], drawings)
    print(
        f"{options.detector} on {options.model}: loss {np.mean(losses[:10]):.3f} in the first 10 steps, "
        f"{np.mean(losses[-10:]):.3f} in the last 10; at IoU 0.5 on {len(drawings)} new drawings, average precision "
        f"{100 * precision:.1f} %, recall {100 * recall:.1f} %; {time.perf_counter() - start:.0f} s\n"
        f"weights and picture: {options.output}"
    )


if __name__ == "__main__":
    try:
        main()
    except (UserError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
