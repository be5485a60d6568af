"""The metrics of a run that goes on, whatever became of the file."""

import json
from pathlib import Path

import pytest

from lma_jax.training.reporting.metrics import MetricsWriter, read_metrics
from lma_jax.training.reporting.pictures import draw_curves


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
