"""The command lines: what they write, and one line for every mistake."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lma_torch
from tests.helpers import commands
from tests.helpers.commands import SHORT, TINY, python
from tests.helpers.pairs import know_resnet10, register_resnet10

pytestmark = pytest.mark.process

# A narrow network keeps the commands short; the last test goes from end to end with ResNet-18. Its options must travel
# with the checkpoint and the exports.
OPTIONS = {"stem": "small", "width": 4, "drop_path": 0.1}
TINY10 = ("--config=configs/digits.py", "--config.model=resnet10_lma", *SHORT)
WITH_OPTIONS = (*TINY10, *(f"--config.{name}={value}" for name, value in OPTIONS.items()))
run = partial(commands.run, setup=know_resnet10)
fail = partial(commands.fail, setup=know_resnet10)
result = partial(commands.result, setup=know_resnet10)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A finished run; tests that damage it work on a copy."""
    workdir = tmp_path_factory.mktemp("run")
    run("lma_jax.train", *WITH_OPTIONS, f"--workdir={workdir}")
    return workdir


@pytest.fixture
def copy(workdir, tmp_path) -> Path:
    return Path(shutil.copytree(workdir, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_writes_metrics_events_and_pictures(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert [row["step"] for row in rows if "val_top1" in row] == [6, 12, 18]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.05] * 9 + [0.005] * 9)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    events = EventAccumulator(str(workdir / "tensorboard")).Reload()
    for tag, name in (("train/loss", "train_loss"), ("val/top1", "val_top1"), ("learning_rate", "learning_rate")):
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [
            (step, pytest.approx(value)) for step, value in expected
        ]
    with Image.open(workdir / "curves.png") as picture:
        assert picture.width > picture.height > 300
    with Image.open(workdir / "examples.png") as picture:
        assert picture.size == (8 * 68, 81)


def test_evaluation_agrees_with_the_last_one_of_training(workdir):
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    output = run("lma_jax.evaluate", f"--checkpoint={workdir}")
    assert f"step 18, on 360 images of digits: top-1 {last['val_top1']:.2f} %" in output
    # Another batch size pads otherwise and counts the same.
    assert output == run("lma_jax.evaluate", f"--checkpoint={workdir}", "--batch_size=77")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_export_loads_in_pytorch_with_its_metadata_and_is_verified(workdir, tmp_path, suffix, monkeypatch):
    register_resnet10(monkeypatch)
    path = tmp_path / f"export.{suffix}"
    run("convert.to_torch", f"--checkpoint={workdir}", f"--output={path}")
    if suffix == "pth":
        state_dict = torch.load(path, weights_only=True)
        metadata = state_dict.metadata
    else:
        with safe_open(path, "pt") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    assert metadata["model_options"] == OPTIONS
    model = lma_torch.create_model(metadata["model"], num_classes=metadata["num_classes"], **metadata["model_options"])
    model.load_state_dict(state_dict, strict=True)
    assert metadata["step"] == 18
    assert metadata["checkpoint"] == str(workdir)
    assert metadata["verified"]["float64"]["passed"] == metadata["verified"]["float64"]["layers"] > 30
    assert metadata["preprocessing"] == dict(image_size=8, resize_size=8, mean=[0.5] * 3, std=[0.5] * 3)
    if suffix == "safetensors":  # the next test verifies the other
        output = run("convert.verify", f"--checkpoint={workdir}", f"--weights={path}")
        layers = metadata["verified"]["float64"]["layers"] - 1  # without the logits
        assert f"float64  {layers} of {layers} layers passed\n" in output
        assert f"float32  {layers} of {layers} layers passed\n" in output


def test_verification_fails_where_one_weight_differs(workdir, tmp_path):
    path = tmp_path / "export.pth"
    run("convert.to_torch", f"--checkpoint={workdir}", f"--output={path}")
    state_dict = dict(torch.load(path, weights_only=True))  # without the metadata, and so without their digest
    state_dict["layer4.0.attention.conv_h.weight"][0, 0, 0, 0] += 0.1
    torch.save(state_dict, path)
    rows = tmp_path / "rows.json"
    code, output, errors = result("convert.verify", f"--checkpoint={workdir}", f"--weights={path}", f"--json={rows}")
    assert code == 1
    assert output.count("the first that failed is layer4.0.attention\n") == 2
    failed = [row["layer"] for row in json.loads(rows.read_text()) if not row["passed"]]
    assert failed == 2 * ["layer4.0.attention", "layer4.0.drop_path", "layer4.0", "layer4", "fc", "logits"]
    assert errors == "error: the two frameworks do not compute the same\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no recipe given: add --config=<name or file> (see --help)"),
        (["--config=configs/digit.py", "--config.epochs=1"], "did you mean configs/digits.py?"),
        (["--config=README.md"], "README.md is no config"),
        ([TINY[0], "--config.batch_sise=3"], "no key 'batch_sise', did you mean 'batch_size'?"),
        ([TINY[0], "--config.optimizer.rate=3"], "no key 'optimizer.rate'"),
        ([TINY[0], "--config.batch_size=2.5"], "--config.batch_size=2.5: a whole number is needed, not '2.5'"),
        ([TINY[0], "--config.learning_rate=nan"], "config.learning_rate=nan is not allowed"),
        ([TINY[0], "--config.mean=a,b,c"], "config.mean="),
        ([TINY[0], "--num_processes=2"], "needs --coordinator and --process_id as well"),
        ([TINY[0], "--distributed"], "cannot join the other processes"),
        ([TINY[0], "--wordkir=x"], "wordkir"),
        ([TINY[0], "epochs=3"], "unexpected argument 'epochs=3'"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(arguments, expected, tmp_path):
    workdir = [] if "--wordkir=x" in arguments else [f"--workdir={tmp_path}/run"]
    assert expected in fail("lma_jax.train", *arguments, *workdir)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "expected"),
    [("init_from=nowhere", "nowhere holds no checkpoint"), ("wandb_project=lma", "pip install wandb")],
)
def test_what_is_missing_for_an_option_is_named(option, expected, tmp_path):
    assert expected in fail("lma_jax.train", *TINY, f"--config.{option}", f"--workdir={tmp_path}")


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write to the workdir" in fail("lma_jax.train", *TINY, f"--workdir={tmp_path}/file/run")
    assert (tmp_path / "file").read_text() == "mine"


def test_training_refuses_the_checkpoints_of_another_network(copy):
    before = contents(copy)
    another = "lma_jax.train", *WITH_OPTIONS, "--config.model=resnet10", f"--workdir={copy}"
    for further in ((), ("--change_config",)):
        line = fail(*another, *further)
        assert "holds a run with another config: model='resnet10' (checkpoint: 'resnet10_lma'), and so of" in line
        assert line.endswith("of another network: take another --workdir")
    assert contents(copy) == before


COMMANDS = [
    ("lma_jax.evaluate", "missing", []),
    ("convert.to_torch", ".", ["--output={folder}/out.pth"]),
    ("convert.verify", "missing", ["--weights={folder}/weights.pth"]),
]


@pytest.mark.parametrize(("module", "folder", "options"), COMMANDS)
def test_a_folder_without_checkpoints_is_refused(module, folder, options, tmp_path):
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "weights.pth")
    options = [option.format(folder=tmp_path) for option in options]
    assert "holds no checkpoint" in fail(module, f"--checkpoint={tmp_path / folder}", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(copy):
    for file in (copy / "checkpoints/18/state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    code, output, errors = result("lma_jax.evaluate", f"--checkpoint={copy}")
    assert code == 0
    assert "step 12" in output
    assert errors.count("\n") == 1
    assert "warning: skipped damaged checkpoints 18" in errors
    line = fail("convert.to_torch", f"--checkpoint={copy}", "--step=18", f"--output={copy}/out.pth")
    assert "checkpoint 18" in line
    assert not (copy / "out.pth").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.pth", None, "does not exist"),
        ("weights.txt", b"", "must end in .safetensors or .pth"),
        ("damaged.pth", b"PK\x03\x04 not really a zip", "cannot read"),
        ("damaged.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot read"),
    ],
)
def test_a_bad_weights_file_is_one_line(workdir, tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert expected in fail("convert.verify", f"--checkpoint={workdir}", f"--weights={tmp_path / name}")


def test_weights_of_another_network_are_refused(workdir, tmp_path):
    torch.save(lma_torch.create_model("resnet18", num_classes=10).state_dict(), tmp_path / "plain.pth")
    line = fail("convert.verify", f"--checkpoint={workdir}", f"--weights={tmp_path}/plain.pth")
    assert "plain.pth does not fit the checkpoint, a resnet10_lma" in line
    assert "layer4.0.attention.conv_w.weight" in line


def test_an_export_that_cannot_be_written_leaves_nothing_behind(workdir, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write" in fail("convert.to_torch", f"--checkpoint={workdir}", f"--output={tmp_path}/file/out.pth")
    assert "must end in" in fail("convert.to_torch", f"--checkpoint={workdir}", f"--output={tmp_path}/out.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("options", [[], ["--model=resnet18", "--checkpoint=x"], ["--checkpoint=x"]])
def test_verification_asks_for_one_of_its_two_forms(options):
    assert "give either --model, or --checkpoint and --weights" in fail("convert.verify", *options)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("lma_jax.train", ["--config", "--workdir", "--coordinator"]),
        ("lma_jax.data.prepare", ["--archives", "--folder"]),
        ("lma_jax.gradcam", ["--checkpoint", "--image", "--gates"]),
        ("convert.to_jax", ["--weights", "--model"]),
        ("lma_jax.evaluate", ["--checkpoint", "--data"]),
        ("convert.to_torch", ["--checkpoint", "--output"]),
        ("convert.verify", ["--model", "--weights"]),
    ],
)
def test_help_shows_the_command_and_its_options(module, options):
    output = python("-m", module, "--help").stdout
    assert f"python -m {module} " in output
    assert all(f"  {option}:" in output for option in options)


def test_resnet18_from_end_to_end(tmp_path):
    """What `make demo` does, in twelve steps and narrow: train, export, verify, evaluate."""
    workdir, weights = tmp_path / "run", tmp_path / "resnet18_lma.safetensors"
    short = ("--config.epochs=0.0668", "--config.width=8")
    commands.run("lma_jax.train", *TINY, *short, f"--workdir={workdir}")
    output = commands.run("convert.to_torch", f"--checkpoint={workdir}", f"--output={weights}")
    assert "64 layers and the logits" in output
    output = commands.run("convert.verify", f"--checkpoint={workdir}", f"--weights={weights}")
    assert "float64  64 of 64 layers passed\n" in output
    assert "float32  64 of 64 layers passed\n" in output
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"top-1 {last['val_top1']:.2f} %" in commands.run("lma_jax.evaluate", f"--checkpoint={workdir}")
