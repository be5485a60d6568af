"""The examples: drawings whose boxes are true, and detectors of torchvision, where it is installed."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image, ImageDraw

import convert
import lma_jax
import lma_torch
from drawings import CLASSES, draw, draw_shape, overlap, write_folder
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc


@pytest.mark.parametrize("kind", CLASSES)
def test_a_shape_fills_its_box(kind):
    for box in ((3, 5, 20, 22), (0, 0, 12, 12)):
        image = Image.new("RGB", (32, 24))
        draw_shape(ImageDraw.Draw(image), kind, box, (255, 128, 1))
        assert image.getbbox() == box


def test_drawings_differ_and_their_boxes_do_not_overlap(tmp_path):
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(50):
        drawing = draw(rng, size=64)
        boxes = [tuple(box) for box in drawing.boxes.astype(int).tolist()]
        assert not any(overlap(one, other) for one in boxes for other in boxes if one is not other)
        assert drawing.image.shape == (64, 64, 3)
        assert drawing.boxes.min() >= 0
        assert drawing.boxes.max() <= 64
        assert len(drawing.labels) == len(boxes)
        counts.add(len(boxes))
    assert counts >= {1, 2, 3}
    write_folder(tmp_path, count=12, size=16, seed=0)
    assert {path.parent.name for path in tmp_path.glob("*/*.png")} == {*CLASSES}
    assert len({path.read_bytes() for path in tmp_path.glob("*/*.png")}) == 12


@pytest.fixture
def detection():
    """The example's module."""
    pytest.importorskip("torchvision", exc_type=ImportError)
    import detection

    return detection


def test_average_precision_and_recall_are_those_by_hand(detection):
    boxes = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=torch.float32)
    drawings = [detection.Drawing(None, boxes.numpy(), np.array([0, label])) for label in (0, 1)]
    drawings += [detection.Drawing(None, boxes[:1].numpy(), np.array([2]))]
    near, far = boxes[0] + torch.tensor([0, 0, 0, 4]), boxes[0] + 50
    found = [
        # Of class 0: a hit, the same box again, a miss. Its other box is not found.
        {
            "boxes": torch.stack([near, boxes[0], far]),
            "labels": torch.tensor([1, 1, 1]),
            "scores": torch.tensor([0.9, 0.8, 0.3]),
        },
        # Of class 0: a hit after that miss. Class 1: a hit with a low score.
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.6, 0.4])},
        # Class 2: nothing.
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)},
    ]
    precision, recall = detection.average_precision(found, drawings)
    assert precision == pytest.approx(((1 + 2 / 3) / 3 + 1 + 0) / 3)
    assert recall == pytest.approx((2 / 3 + 0 + 0) / 3)


@pytest.mark.parametrize(("kind", "model"), [("fasterrcnn", "resnet18_lma"), ("retinanet", "mobilenetv2_lma")])
def test_a_detector_trains_and_its_backbone_computes_the_same_in_jax(detection, kind, model, x64, tmp_path):
    start: Any = lma_torch.create_model(model, num_classes=3)
    torch.save(start.state_dict(), tmp_path / "weights.pth")
    detector: Any = detection.create_detector(kind, model, weights=str(tmp_path / "weights.pth"), image_size=32)
    losses = detection.train(detector, steps=2, batch_size=1, image_size=32, device=torch.device("cpu"))
    assert np.isfinite(losses).all()
    body = detector.backbone.body
    kinds = {type(module).__name__ for module in body.modules()}
    assert "FrozenBatchNorm2d" in kinds
    assert "BatchNorm2d" not in kinds
    after, before = body.state_dict(), start.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    frozen = ("conv1", "layer1") if model.startswith("resnet") else [f"features.{index}." for index in range(4)]
    assert not [name for name in changed if name.startswith((*frozen, "bn")) or "running" in name]

    class Backbone(nnx.Module):
        def __init__(self):
            options: dict[str, Any] = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            indices = (1, 2, 3, 4) if kind == "fasterrcnn" else (2, 3, 4)
            self.body = lma_jax.create_model(model, features_only=True, out_indices=indices, **options)
            extra = lma_jax.LastLevelMaxPool() if kind == "fasterrcnn" else lma_jax.LastLevelP6P7(256, 256, **options)
            self.fpn = lma_jax.FeaturePyramid(self.body.feature_info.channels(), extra_blocks=extra, **options)

    detector.double().eval()
    backbone = convert.to_jax(detector.backbone.state_dict(), nnx.jit(lambda: Backbone())())
    backbone.eval()
    images = normal(1, 3, 64, 64)
    with torch.no_grad():
        expected = detector.backbone(torch.from_numpy(images)).values()
    found = nnx.jit(lambda backbone, images: backbone.fpn(backbone.body(images)))(backbone, to_nhwc(images))
    for one, other in zip(found, expected, strict=True):
        assert relative_error(to_nchw(one), other) < 1e-9
