"""Comparisons of runs: groups, paired differences, and what the command writes and refuses."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import pytest
from PIL import Image
from scipy.stats import ttest_rel

from configs import cifar10
from convert.measure import comparison, plots
from lma_jax.checkpoint.format import Metadata, record_of
from lma_jax.files import write
from tests.helpers.commands import fail, result, run

TOP1 = {"resnet18": (60.0, 62.0, 61.0), "resnet18_lma": (61.5, 62.5, 63.5), "resnet18_se": (59.0, 63.0)}


def make_run(
    workdir: Path, model: str, *, seed: int, top1: float, epochs: float = 1.96, images: str = "", module="", **values
) -> Path:
    """A run as the trainer leaves it, without arrays; `images` stands for the identity of its data."""
    config = cifar10.get_config(model)
    config.update(seed=seed, epochs=2.0, learning_rate=1.0)
    config = {**config.to_dict(), **values}
    data = {"train": {"cat": images}} if images else {}
    metadata = Metadata(model, 10, None, json.loads(json.dumps(config)), registered_by=module, data=data)
    folder = workdir / "checkpoints" / "20" / "record"
    folder.mkdir(parents=True)
    write(folder / "metadata", json.dumps(record_of({}, metadata)))
    rows = [
        {"step": step, "epoch": epoch, "train_loss": 1.0, "images_per_second": 50.0, "val_top1": score}
        for step, epoch, score in ((10, epochs / 2, top1 - 10), (20, epochs, top1))
    ]
    write(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return workdir


@pytest.fixture
def runs(tmp_path) -> list[str]:
    return [
        str(make_run(tmp_path / f"{model}-{seed}", model, seed=seed, top1=top1))
        for model, scores in TOP1.items()
        for seed, top1 in enumerate(scores)
    ]


def count_nothing() -> None:
    """Spares most tests the seconds that parameters and multiply-accumulates take."""
    comparison.size_of = lambda metadata: (1, 1)


compare = partial(run, "convert.compare", setup=count_nothing)
refused = partial(fail, "convert.compare", setup=count_nothing)


def cells(table: str) -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in table.splitlines()
        if line[:1] == "|"
    ]
    return {row[0]: row[1:] for row in rows[2:]}


def test_runs_of_other_seeds_are_one_row_and_are_compared_seed_by_seed(runs, tmp_path):
    written = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "markdown", "png")}
    flags = [f"--{'plot' if kind == 'png' else kind}={path}" for kind, path in written.items()]
    table = run("convert.compare", *reversed(runs), *flags)
    rows = cells(table)
    assert list(rows) == ["resnet18_se", "resnet18_lma", "resnet18"]  # as given
    lma, plain = TOP1["resnet18_lma"], TOP1["resnet18"]
    pairs = [a - b for a, b in zip(lma, plain)]
    low, high = ttest_rel(lma, plain).confidence_interval(0.95)
    assert rows["resnet18_lma"][0] == "3"
    assert rows["resnet18_lma"][3] == f"{mean(lma):.2f} ± {stdev(lma):.2f}"
    assert rows["resnet18_lma"][4] == f"{mean(pairs):+.2f} ± {stdev(pairs):.2f} [{low:+.2f}, {high:+.2f}]"
    assert rows["resnet18"][4] == ""
    assert rows["resnet18_se"][4].startswith("+0.00 ± 1.41")
    # The options of the network count: an eighth of the width.
    assert int(rows["resnet18"][1].replace(",", "")) < 200_000
    assert written["markdown"].read_text() == table
    lines = list(csv.DictReader(written["csv"].read_text().splitlines()))
    assert len(lines) == 2 * len(runs)
    assert [float(line["val_top1"]) for line in lines if line["network"] == "resnet18"] == [50, 60, 52, 62, 51, 61]
    found = {one["network"]: one for one in json.loads(written["json"].read_text())["groups"]}
    assert found["resnet18_lma"]["difference"]["pairs"] == pairs
    assert found["resnet18"]["difference"] is None
    with Image.open(written["png"]) as picture:
        assert picture.width > picture.height > 300
    run("convert.compare", *runs, *flags)  # replaces its own files


def test_what_only_some_configs_have_makes_another_row_with_its_name(tmp_path):
    made = [
        make_run(tmp_path / "a", "resnet18", seed=0, top1=60.0),
        make_run(tmp_path / "b", "resnet18", seed=0, top1=61.0, label_smoothing=0.1, data_threads=3),
        make_run(tmp_path / "c", "resnet18", seed=1, top1=65.0, label_smoothing=0.1, epochs=1.0, learning_rate=1),
    ]
    table = compare(*map(str, made), "--baseline=resnet18, label_smoothing=0.1")
    rows = cells(table)
    assert list(rows) == ["resnet18, label_smoothing=0", "resnet18, label_smoothing=0.1"]
    assert rows["resnet18, label_smoothing=0"][4] == "-1.00*"
    assert rows["resnet18, label_smoothing=0.1"][3] == "63.00 ± 2.83*"
    assert "*: of a run that has not ended, or has failed" in table
    line = refused(*map(str, made), "--baseline=resnet18")
    assert "--baseline=resnet18: several groups are called so; there are resnet18, label_smoothing=0; " in line


def test_other_data_and_other_initial_weights_make_another_row(tmp_path):
    def make(name: str, seed: int, **values) -> str:
        return str(make_run(tmp_path / name, "resnet18_lma", seed=seed, top1=60.0 + seed, **values))

    given = [
        make("a", 0, images="50,000", data_dir="here"),
        make("b", 1, images="50,000", data_dir="there"),  # the folder has moved
        make("c", 2, images="500", data_dir="there"),
    ]
    table = compare(*given)
    assert [cell[0] for cell in cells(table).values()] == ["2", "1"]
    assert all(name.startswith("resnet18_lma, data=") for name in cells(table))
    assert "data: a digest of" in table
    started = [
        make("d", 1, init_from="runs/plain-1", warm_start="exact"),
        make("e", 12, init_from="runs/plain-12", warm_start="exact"),
        make("f", 1, init_from="runs/plain-1"),
        make("g", 1),
        make("h", 2, init_from="resnet18-2a.pth"),  # every seed from one file, whose name has digits
        make("i", 0, init_from="resnet18-2a.pth"),
        make("j", 1, init_from="disk1/plain|1"),
        make("k", 3, init_from="./disk1//plain|3"),
    ]
    assert {name: cell[0] for name, cell in cells(compare(*started)).items()} == {
        'resnet18_lma, init_from="runs/plain-*", warm_start="exact"': "2",
        'resnet18_lma, init_from="runs/plain-*", warm_start=""': "1",
        'resnet18_lma, init_from="", warm_start=""': "1",
        'resnet18_lma, init_from="resnet18-2a.pth", warm_start=""': "2",
        r'resnet18_lma, init_from="disk1/plain\|*", warm_start=""': "2",
    }


def test_seeds_without_a_partner_are_counted_and_scores_that_are_no_numbers_do_not_count(tmp_path):
    made = [
        make_run(tmp_path / "a", "resnet18", seed=0, top1=60.0),
        make_run(tmp_path / "b", "resnet18_lma", seed=0, top1=62.0),
        make_run(tmp_path / "c", "resnet18_lma", seed=1, top1=63.0),
        make_run(tmp_path / "d", "resnet18_se", seed=0, top1=59.0),
    ]
    file = made[3] / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 21, "epoch": 2.0, "val_top1": NaN}\n')
    rows = cells(compare(*map(str, made)))
    assert rows["resnet18_lma"][4] == "+2.00 (1 of 2 seeds)"
    assert rows["resnet18_se"][3:5] == ["59.00", "-1.00"]


def test_what_is_no_run_is_left_out_with_its_reason(runs, tmp_path):
    (tmp_path / "train.log").write_text("step 1")
    (tmp_path / "empty").mkdir()
    shutil.copytree(runs[0], tmp_path / "copy")
    shutil.copytree(runs[0], tmp_path / "earlier")
    file = tmp_path / "earlier" / "metrics.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    record = make_run(tmp_path / "odd", "resnet18", seed=7, top1=60.0, epochs=1.0) / "checkpoints" / "20" / "record"
    write(record / "metadata", json.dumps(record_of({}, Metadata("resnet18", 10, None, {"seed": 7, "epochs": "2"}))))
    (tmp_path / "latest").symlink_to(runs[0])
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    make_run(tmp_path / "mine", "resnet18_mine", seed=0, top1=60.0, module="mine")
    (make_run(tmp_path / "young", "resnet18", seed=5, top1=60.0) / "metrics.jsonl").unlink()
    record = make_run(tmp_path / "damaged", "resnet18", seed=6, top1=60.0) / "checkpoints" / "20" / "record"
    (record / "metadata").write_text("{}")
    imported = tmp_path / "imported" / "checkpoints" / "0" / "record"
    imported.mkdir(parents=True)
    write(imported / "metadata", json.dumps(record_of({}, Metadata("resnet18", 10, None, {}))))
    names = "train.log", "empty", "copy", "latest", "gone", "loop", "mine", "young", "damaged", "imported", "odd"
    code, table, warnings = result(
        "convert.compare", tmp_path / "earlier", *runs, *(tmp_path / name for name in names), setup=count_nothing
    )
    assert code == 0
    assert [cell[0] for cell in cells(table).values()] == ["3", "3", "2"]
    for name, reason in {
        "train.log": "it is no folder",
        "gone": "it is no folder",
        "loop": "it is no folder",
        "empty": "it holds no checkpoint",
        "copy": f"it is a copy of {runs[0]}",
        "mine": "its attention 'mine' was registered by mine: add --import=mine",
        "young": "its run has not been evaluated yet",
        "damaged": "all of its checkpoints are damaged",
        "imported": "it holds imported weights, no training run",
        "odd": "its config has epochs='2', not a number of epochs above 0",
        "earlier": f"it is a copy of {runs[0]}",
    }.items():
        assert f"warning: left out {tmp_path / name}: {reason}" in warnings
    assert "latest" not in warnings
    line = refused(str(tmp_path / "empty"))
    assert f"no run is left to compare: left out {tmp_path / 'empty'}: it holds no checkpoint" in line
    assert f"there is no {tmp_path / 'missing'}" in refused(*runs, str(tmp_path / "missing"))


def test_bad_runs_are_refused_in_one_line(runs, tmp_path):
    assert "no run given: name the workdirs" in refused()
    again = make_run(tmp_path / "again", "resnet18", seed=1, top1=1.0)
    assert f"resnet18-1 and {again} are the same run twice" in refused(*runs, str(again))
    assert "did you mean 'resnet18_se'? No group is called so" in refused(*runs, "--baseline=resnet18_s")
    file = tmp_path / "resnet18-0" / "metrics.jsonl"
    assert "is an input of this command" in refused(*runs, f"--csv={file}")


def a_run(step_and_top1: dict[int, float], **values) -> comparison.Run:
    rows = [{"step": step, "epoch": step / 10, "val_top1": top1} for step, top1 in step_and_top1.items()]
    config = {"epochs": 4.0, "seed": 0, **values}
    return comparison.Run(Path("run"), Metadata("resnet18", 10, None, config), rows, 1.0, 1, 1)


def test_curves_are_of_the_evaluations_that_all_seeds_have(tmp_path):
    scores = {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}
    one = comparison.Group("", [a_run(scores), a_run({step: scores[step] for step in (20, 40)}, seed=1)])
    assert plots._common_evaluations(one) == ([2.0, 4.0], [[2.0, 2.0], [4.0, 4.0]])


def test_labels_leave_room_for_the_panels_and_are_no_formulas(tmp_path):
    names = [f"resnet18, init_from={'a/long-path/' * 20}${number}_{{x$" for number in range(12)]
    groups = [comparison.Group(name, [a_run({10: 50.0})]) for name in names]
    plots.draw_comparison(tmp_path / "plot.png", groups, groups[0])  # matplotlib warns of panels without room
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.height > picture.width
