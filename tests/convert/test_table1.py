"""The paper's Table 1: its rows, its marks, what is filled in, and the command."""

import csv
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lma_jax
from convert.measure import runs, table1
from convert.measure.paper import EXACT_MACS, TABLE1, Published
from convert.measure.timing import Timing, speedup
from lma_jax.checkpoint.format import Metadata
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.errors import UserError
from tests.helpers.commands import fail, run
from tests.helpers.published import PUBLISHED


def published(name: str) -> Published:
    return next(row for row in TABLE1 if row.model == name)


def row_of(name: str) -> table1.Row:
    return table1.Row(published(name), 1, 2, 3)


def test_every_row_is_a_network_and_lma_leads_each_backbone():
    assert {row.model for row in TABLE1} <= set(lma_jax.list_models())
    assert len(TABLE1) == 28
    for backbone in ("mobilenetv2", "resnet18", "resnet34", "resnet50"):
        own = [row for row in TABLE1 if row.model.partition("_")[0] == backbone]
        assert max(own, key=lambda row: row.top1).model == f"{backbone}_lma"


@pytest.mark.parametrize(
    ("value", "printed", "reason"),
    [
        (25.557204, "25.56", None),
        (3.504872, "3.51", "rounded twice"),
        (28.105032, "28.10", "cut off"),
        (4.1354, "4.13", "cut off"),
        (4.1354, "4.20", "no reason known"),
    ],
)
def test_a_figure_that_is_not_as_printed_is_marked_with_the_reason(value, printed, reason):
    marks = table1.difference("MACs", value, printed, "G")
    assert len(marks) == (reason is not None)
    assert all(reason in mark and printed in mark for mark in marks)


def test_the_exact_macs_are_those_printed_or_differ_for_a_known_reason():
    for row in TABLE1:
        if row.model in EXACT_MACS:
            marks = table1.difference("MACs", EXACT_MACS[row.model] / 1e9, row.macs, "G")
            assert not any("no reason known" in mark for mark in marks)


@pytest.mark.parametrize(("name", "marks"), [("resnet18_se", 0), ("mobilenetv2_eca", 1)])
def test_a_row_is_counted_in_both_frameworks(name, marks):
    row = table1.counted(published(name))
    assert row.parameters == PUBLISHED[name].parameters
    assert len(row.marks) == marks
    assert row.products < row.macs


def test_fps_are_relative_to_the_plain_backbone_in_turns_with_it(monkeypatch):
    built = []

    def build(variant, size, device):
        built.append(variant)
        return lambda: None

    monkeypatch.setattr(runs, "build", build)
    rows = [row_of("resnet18_se"), row_of("resnet50"), row_of("resnet18_lma")]
    options: dict[str, Any] = dict(dtype="float32", batch_size=2, image_size=8, device="cpu", rounds=3)
    table1.fill_fps(rows, ("jax", "torch"), **options)
    assert [variant.model for variant in built if variant.framework == "jax"] == [
        *("resnet18", "resnet18_se", "resnet18_lma", "resnet50"),
    ]
    assert all(set(row.fps) == {"jax", "torch"} for row in rows)
    assert rows[1].relative_fps == {"jax": 1.0, "torch": 1.0}
    slow, plain = Timing("slow", 1.0, [2.0, 4.0, 4.0]), Timing("plain", 1.0, [1.0, 3.0, 2.0])
    assert speedup(slow, plain).median == 0.5


def evaluated_run(workdir, **metadata) -> str:
    """A workdir with a checkpoint without weights."""
    metrics = {"val_top1": 70.5, "val_top5": 89.7}
    described = dict(model="resnet18_se", num_classes=1000, class_names=None, config={}, metrics=metrics)
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save({"step": np.int32(1)}, Metadata(**{**described, **metadata}), top1=70.5)
    return str(workdir)


def test_accuracy_comes_from_checkpoints(tmp_path):
    rows = [row_of("resnet18_se"), row_of("resnet18")]
    table1.fill_accuracy(rows, [evaluated_run(tmp_path / "se"), evaluated_run(tmp_path / "r18", model="resnet18")])
    assert (rows[0].top1, rows[0].top5) == (70.5, 89.7)
    assert rows[0].marks == []
    assert "70.50 (70.59)" in table1.markdown(rows)
    table1.fill_accuracy(rows, [evaluated_run(tmp_path / "ten", num_classes=10)])
    assert rows[0].marks == ["accuracy of 10 classes, not ImageNet's 1000"]
    with pytest.raises(UserError, match="is a resnet18_se, which is not among the rows"):
        table1.fill_accuracy(rows[1:], [str(tmp_path / "se")])
    with pytest.raises(UserError, match="has not been evaluated"):
        table1.fill_accuracy(rows, [evaluated_run(tmp_path / "new", metrics={})])


@pytest.mark.process
def test_the_command_prints_and_writes_the_table(tmp_path):
    files = {name: tmp_path / f"table.{name}" for name in ("markdown", "csv", "json")}
    options = [f"--{name}={path}" for name, path in files.items()]
    output = run("convert.table1", "--quick", "--rows=resnet18,resnet18_lma", *options, f"--plot={tmp_path}/table.png")
    assert (
        "| resnet18_lma | 11,689,576 (11.69M) | 1,823,912,424 (1.82G) | - (0.972) | - (0.972) | - (71.43) |" in output
    )
    assert files["markdown"].read_text() == output
    with files["csv"].open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["resnet18", "resnet18_lma"]
    assert json.loads(files["json"].read_text())[1]["products"] == 1_814_302_720
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.height > 500


@pytest.mark.process
def test_mistakes_are_told():
    assert "--rows has no 'resnet18_lna', did you mean 'resnet18_lma'" in fail("convert.table1", "--rows=resnet18_lna")
