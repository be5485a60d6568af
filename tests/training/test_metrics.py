"""The metrics of a run that goes on, whatever became of the file."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from configs import digits
from lma_jax import figures
from lma_jax.data.sources import Source
from lma_jax.errors import UserError
from lma_jax.preprocessing import IMAGENET
from lma_jax.training.reporting.gradcam import GradCam
from lma_jax.training.reporting.metrics import MetricsWriter, read_metrics
from lma_jax.training.reporting.pictures import draw_curves, draw_examples
from tests.helpers.images import noise


def row(step: int) -> dict[str, float]:
    return {"step": step, "epoch": step / 6, **{f"{split}_top{k}": 50.0 for split in ("train", "val") for k in (1, 5)}}


DAMAGE = [
    b"\xff\xfe\n",
    b"null\n",
    b"3\n",
    b"[]\n",
    b'{"loss": 1.0}\n',
    b'{"step": "2"}\n',
    b'{"step": true}\n',
    b'{"step": 2.5}\n',
    b'{"step": null}\n',
    b'{"step": 2, "val_top1": "high"}\n',
    b'{"step": ' + b"9" * 5000 + b"}\n",
    b'{"step": 2, "val_top1": ' + b"9" * 400 + b"}\n",
    b"[" * 50_000 + b"\n",
    b"\0" * 100 + b"\n",
    b"x" * 200_000 + b"\n",
    b"\n",
    b'{"step": 2, "lo',
    b'{"step": 2}',
]


def line(step: int) -> bytes:
    return json.dumps(row(step)).encode() + b"\n"


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: repr(damage[:20]))
def test_a_damaged_line_is_left_out_with_a_warning(damage, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(line(1) + damage)
    with MetricsWriter(tmp_path, step=5, config={}) as writer:
        writer.write(row(6))
    assert capsys.readouterr().err.startswith("warning: left out ")
    assert (tmp_path / "metrics.jsonl").read_bytes() == line(1) + line(6)
    assert read_metrics(tmp_path, say=pytest.fail) == [row(1), row(6)]


def test_every_damage_together_is_one_warning(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(line(1) + b"".join(DAMAGE[:-2]) + line(3) + DAMAGE[-1])
    MetricsWriter(tmp_path, step=9, config={}).__exit__()
    (warning,) = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl, which are no metrics: 2, 3, 4, 5, 6, ..." in warning
    assert [found["step"] for found in read_metrics(tmp_path)] == [1, 3]


def test_whole_metrics_are_kept_without_a_word(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(line(1) + line(2) + line(3))
    MetricsWriter(tmp_path, step=2, config={}).__exit__()
    assert capsys.readouterr().err == ""
    assert (tmp_path / "metrics.jsonl").read_bytes() == line(1) + line(2)


def test_curves_are_drawn_of_the_rows_that_have_what_is_drawn(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "val_top1": 3}\n')
    assert draw_curves(tmp_path, title="none") is None


def test_tensorboard_reads_the_config_the_pictures_and_the_hyperparameters_with_the_final_metrics(tmp_path):
    workdir, config = tmp_path / "run", digits.get_config().to_dict()
    workdir.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    path = draw_examples(workdir, pixels, [*"01234567", "\u6f22 and more than there is room for"])
    for step, top1 in ((0, 40.0), (6, 90.0)):  # the second one resumes
        with MetricsWriter(workdir, step=step, config=config) as writer:
            writer.picture(step + 1, "examples", path.read_bytes())
            writer.write({**row(step + 6), "val_top1": top1})
    with MetricsWriter(workdir, step=12, config=config) as writer:
        writer.finished(12)

    events = EventMultiplexer(tensor_size_guidance={"hparams": 0}).AddRunsFromDirectory(str(tmp_path)).Reload()
    width, height, png = events.Tensors("run/tensorboard", "examples")[0].tensor_proto.string_val
    assert (int(width), int(height)) == (8 * 68, 2 * 81)
    drawn = np.asarray(Image.open(io.BytesIO(png)))
    np.testing.assert_array_equal(drawn[2:66:4, 2:66:4], pixels[0])
    (table,) = events.Tensors("run/tensorboard", "config")[0].tensor_proto.string_val
    assert "| optimizer | `'sgd'` |" in table.decode()

    provider = SimpleNamespace(data_provider=MultiplexerDataProvider(events, str(tmp_path)))
    plugin, request = Context(provider), api_pb2.ListSessionGroupsRequest(slice_size=9)
    experiment = get_experiment.Handler(RequestContext(), plugin, "", api_pb2.GetExperimentRequest()).run()
    assert {info.name for info in experiment.hparam_infos} == config.keys()
    request.allowed_statuses.append(api_pb2.STATUS_SUCCESS)
    (group,) = list_session_groups.Handler(RequestContext(), plugin, "", request).run().session_groups
    assert group.hparams["learning_rate"].number_value == 0.05
    assert {metric.name.tag: metric.value for metric in group.metric_values}["val/top1"] == 90.0


def test_gradcam_is_drawn_of_images_from_all_over_the_validation_set_that_can_be_decoded(monkeypatch):
    drawn: list[str] = []
    figure = SimpleNamespace(savefig=lambda target, **options: target.write(b"png"))

    def draw_maps(model, images, *_, **options):
        drawn.extend(images)
        return figure

    monkeypatch.setattr(figures, "draw_maps", draw_maps)
    records = [{"image": b"damaged" if index == 2 else noise(), "label": index} for index in range(9)]
    network: Any = SimpleNamespace(bind=lambda params, batch_stats: None)
    options: dict[str, Any] = dict(preprocessing=IMAGENET, model="resnet18", loss="softmax")
    cam = GradCam(network, Source("letters", records, tuple("abcdefghi")), 5, **options)
    assert cam.draw(7, {}, {}) == b"png"
    assert drawn == ["image 0, a", "image 4, e", "image 6, g", "image 8, i"]
    damaged = GradCam(network, Source("letters", records[2:3], ("a", "b", "c")), 4, **options)
    with pytest.raises(UserError, match="none of its images can be decoded"):
        damaged.draw(7, {}, {})
