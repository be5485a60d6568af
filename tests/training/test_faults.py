"""What can happen to a run: signals, losses that are not finite, other configs, full disks, other tools."""

import gzip
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from lma_jax.checkpoint.format import load_checkpoint
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.errors import InterruptedRun, UserError
from lma_jax.training import schedule, trainer
from lma_jax.training.reporting.metrics import read_metrics
from lma_jax.training.reporting.profiler import Profiler
from lma_jax.training.reporting.reporter import Reporter
from lma_jax.training.trainer import Trainer
from tests.helpers import tiny
from tests.helpers.datasets import smooth, write_folder
from tests.helpers.runs import assert_same_bits, deterministic

pytestmark = pytest.mark.deep


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    tiny.register(monkeypatch)


EVERYTHING: dict[str, Any] = dict(ema_decay=0.9, mixup=0.2, optimizer="lamb", accumulate=2)


def recipe(**values) -> ConfigDict:
    """18 steps of a tiny network on 8 x 8 digits over four devices, evaluated and saved after steps 6, 12 and 18."""
    config = digits.get_config()
    small: dict[str, Any] = dict(model="tiny_lma", image_size=8, resize_size=8, batch_size=8, eval_batch_size=60)
    short: dict[str, Any] = dict(epochs=0.1, eval_every=0.0334, decay_epochs=(0.05,), log_every=1)
    config.update({**small, **short, **values})
    return config


def fit(workdir: Path, *, change_config: bool = False, **values) -> None:
    Trainer(recipe(**values), workdir, change_config=change_config).fit()


def assert_same_run(workdir: Path, reference: Path) -> None:
    assert_same_bits(workdir, reference)
    assert deterministic(read_metrics(workdir)) == deterministic(read_metrics(reference))


def at_step(monkeypatch, number: int, act: Callable[[], None]) -> None:
    """Acts when the training step has been reported."""
    original = Reporter.step

    def step(self, at, *arguments, **options):
        original(self, at, *arguments, **options)
        if at == number:
            act()

    monkeypatch.setattr(Reporter, "step", step)


def interrupt_at_step(monkeypatch, number: int) -> None:
    at_step(monkeypatch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))


def interrupt_in_evaluation(monkeypatch, number: int) -> None:
    original, calls = trainer.eval_batches, []

    def eval_batches(*arguments, **options):
        calls.append(1)
        for batch in original(*arguments, **options):
            yield batch
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "eval_batches", eval_batches)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run with everything in its state that a run can have."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(patch)
        fit(workdir, **EVERYTHING)
    return workdir


@pytest.mark.parametrize(
    ("interrupt", "number", "saved"),
    [
        (interrupt_at_step, 1, 1),
        (interrupt_at_step, 8, 8),
        (interrupt_at_step, 12, 12),
        (interrupt_at_step, 18, 18),
        (interrupt_in_evaluation, 2, 12),
        (interrupt_in_evaluation, 3, 18),
    ],
)
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(undisturbed, tmp_path, monkeypatch, interrupt, number, saved):
    with monkeypatch.context() as patch:
        interrupt(patch, number)
        with pytest.raises(InterruptedRun, match=f"stopped by SIGTERM after step {saved}; the same command"):
            fit(tmp_path, **EVERYTHING)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert load_checkpoint(tmp_path).step == saved
    fit(tmp_path, **EVERYTHING)
    assert_same_run(tmp_path, undisturbed)


class Killed(BaseException):
    """Ends a run as a kill would: nothing more is saved."""


def kill_at_step(monkeypatch, number: int) -> None:
    def kill() -> None:
        raise Killed

    at_step(monkeypatch, number, kill)


@pytest.mark.parametrize("options", [dict(save_every_steps=4), dict(save_every=1e-9)], ids=["steps", "minutes"])
def test_saves_between_evaluations_lose_little_and_change_no_bit(undisturbed, tmp_path, monkeypatch, capsys, options):
    for number in (11, 16):
        with monkeypatch.context() as patch:
            kill_at_step(patch, number)
            with pytest.raises(Killed):
                fit(tmp_path, **EVERYTHING, **options)
    fit(tmp_path, **EVERYTHING, **options)
    assert_same_run(tmp_path, undisturbed)
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 3
    resumed = re.findall(r"resuming after step (\d+)", capsys.readouterr().out)
    assert "save_every" in options or resumed == ["8", "12"]


def test_a_clock_saves_only_when_its_time_has_come(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, state, *_, **__: saved.append(int(state.step)))
    now = iter(range(0, 10**6, 60))  # a minute passes at each look
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: next(now)))
    fit(tmp_path, save_every=4.0)
    assert saved == [4, 6, 10, 12, 16, 18]
    saved.clear()
    fit(tmp_path, save_every=0.0)
    assert saved == [6, 12, 18]


def test_a_signal_sent_twice_and_again_while_the_state_is_saved_loses_nothing(undisturbed, tmp_path, monkeypatch):
    save = Checkpoints.save

    def interrupted(self, *arguments, **options):
        save(self, *arguments, **options)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)

    with monkeypatch.context() as patch:
        at_step(patch, 8, twice)
        patch.setattr(Checkpoints, "save", lambda self, *a, **o: (interrupted if self.newest else save)(self, *a, **o))
        with pytest.raises(InterruptedRun, match="stopped by SIGHUP after step 8; the same command goes on"):
            fit(tmp_path, **EVERYTHING)
    fit(tmp_path, **EVERYTHING)
    assert_same_run(tmp_path, undisturbed)


def test_a_signal_before_anything_is_trained_saves_nothing_and_spoils_nothing(undisturbed, tmp_path, monkeypatch):
    compiling = trainer.make_train_step

    def make_train_step(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return compiling(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_train_step", make_train_step)
        with pytest.raises(InterruptedRun, match="SIGTERM before the first step; the same command starts again"):
            fit(tmp_path, **EVERYTHING)
        assert list((tmp_path / "checkpoints").iterdir()) == []
    with monkeypatch.context() as patch:
        kill_at_step(patch, 13)
        with pytest.raises(Killed):
            fit(tmp_path, **EVERYTHING)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_train_step", make_train_step)
        with pytest.raises(InterruptedRun, match="SIGTERM after step 12; the same command goes on"):
            fit(tmp_path, **EVERYTHING)
    assert load_checkpoint(tmp_path).metadata.metrics
    fit(tmp_path, **EVERYTHING)
    assert_same_run(tmp_path, undisturbed)


def test_an_evaluation_that_is_repeated_is_reported_once(undisturbed, tmp_path, monkeypatch):
    """A signal saves before the evaluation, and the next run is killed between its row and its checkpoint."""
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 12)
        with pytest.raises(InterruptedRun):
            fit(tmp_path, **EVERYTHING)

    def kill(self, *_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", kill)
        with pytest.raises(Killed):
            fit(tmp_path, **EVERYTHING)
    fit(tmp_path, **EVERYTHING)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("stopped", [False, True], ids=["to the end", "and SIGTERM"])
def test_a_disk_that_stays_full_is_a_failure(undisturbed, tmp_path, monkeypatch, capsys, stopped):
    with monkeypatch.context() as patch:
        full = lambda: patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))  # noqa: E731
        at_step(patch, 8, full)
        if stopped:
            interrupt_at_step(patch, 14)
        lost = 14 if stopped else 18
        with pytest.raises(
            UserError, match=rf"after step {lost} could not be saved .*; the newest checkpoint is 6\. M"
        ):
            fit(tmp_path, **EVERYTHING, save_wait=0.0)
    captured = capsys.readouterr()
    assert "trained" not in captured.out
    assert captured.err.count("\n") == 1
    fit(tmp_path, **EVERYTHING)
    assert_same_run(tmp_path, undisturbed)


def test_a_nonfinite_loss_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step [23]; there is no checkpoint yet"):
        fit(tmp_path, learning_rate=1e30)
    fit(tmp_path / "run")
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+; the last good checkpoint is 18"):
        fit(tmp_path / "run", epochs=0.2, learning_rate=1e30, change_config=True)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir() if path.name == "19"] == []


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(UserError, match=r"(at batch of evaluation 1|weight is infinite).*there is no checkpoint yet"):
        fit(tmp_path, learning_rate=3e38, momentum=0.0, eval_every=0.0056)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_another_config_is_refused_with_the_differences(tmp_path):
    fit(tmp_path)
    with pytest.raises(UserError, match=r"seed=1 \(checkpoint: 0\), weight_decay=0.1 \(checkpoint: 0.0001\).*--change"):
        fit(tmp_path, seed=1, weight_decay=0.1)
    fit(tmp_path, data_threads=1, log_every=5, eval_batch_size=120)
    fit(tmp_path, seed=1, change_config=True)


def test_a_resumed_run_keeps_saying_where_it_started(tmp_path):
    fit(tmp_path / "first")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at_step(patch, 3)
        with pytest.raises(InterruptedRun):
            fit(tmp_path / "tuned", init_from=str(tmp_path / "first"))
    fit(tmp_path / "tuned")
    assert load_checkpoint(tmp_path / "tuned").metadata.config["init_from"] == str(tmp_path / "first")


def test_another_optimizer_is_a_difference_of_config_not_of_network(tmp_path):
    fit(tmp_path)
    with pytest.raises(UserError, match=r"another config: optimizer='lamb' \(checkpoint: 'sgd'\)"):
        fit(tmp_path, optimizer="lamb")


def test_files_that_cannot_be_written_are_reported_and_training_goes_on(tmp_path, capsys, monkeypatch):
    original = Reporter.step

    def step(self, at, *arguments, **options):
        if at == 3:
            (tmp_path / "metrics.jsonl").unlink()
            (tmp_path / "metrics.jsonl").mkdir()
        if at == 5:
            (tmp_path / "metrics.jsonl").rmdir()
        original(self, at, *arguments, **options)

    monkeypatch.setattr(Reporter, "step", step)
    fit(tmp_path)
    assert capsys.readouterr().err.count("warning: cannot write") == 2
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(5, 19))


def test_training_and_validation_must_have_the_same_classes(tmp_path):
    from PIL import Image

    for name in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
    with pytest.raises(UserError, match=r"train has 2 classes and .*val has 1, but 'dog' is in one of them only"):
        fit(tmp_path / "run", dataset="folder", data_dir=str(tmp_path), val_split="val")


def test_a_run_resumes_only_on_the_same_classes(tmp_path, monkeypatch):
    fit(tmp_path)
    load = Checkpoints.load

    def renamed(self):
        checkpoint = load(self)
        assert checkpoint is not None
        return replace(checkpoint, metadata=replace(checkpoint.metadata, class_names=tuple("abcdefghij")))

    monkeypatch.setattr(Checkpoints, "load", renamed)
    with pytest.raises(UserError, match="classes of digits train are not the 10 classes of the checkpoint: 'a' is"):
        fit(tmp_path)


def write_classes(folder: Path) -> None:
    """Three classes of 8 training and 4 validation images."""
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog", "emu"):
            write_folder(folder / split / name, {f"{number}.png": smooth(number, "PNG") for number in range(count)})


def rename_class(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / "yak")


OTHER_DATA = {
    "a file is added": (
        lambda data: (data / "train/cat/00.png").write_bytes(smooth(0, "PNG")),
        r"on other train data: 'cat': 9 images, digest \w+ \(checkpoint: 8 images",
    ),
    "a validation file is removed": (
        lambda data: (data / "val/emu/0.png").unlink(),
        r"on other validation data: 'emu': 3 images, digest \w+ \(checkpoint: 4 images",
    ),
    "a file is replaced": (
        lambda data: (data / "train/dog/0.png").write_bytes(b"another size"),
        r"on other train data: 'dog': 8 images, digest (\w+) \(checkpoint: 8 images, digest (?!\1)",
    ),
    "a class is renamed": (
        rename_class,
        r"on other train data: 'cat': missing .*'yak': 8 images.* and on other validation data: 'cat': mis",
    ),
}


def test_a_run_resumes_only_on_the_same_data(tmp_path):
    write_classes(tmp_path / "data")
    options: dict[str, Any] = dict(dataset="folder", val_split="val", epochs=1.0, eval_every=1.0, decay_epochs=(0.5,))
    fit(tmp_path / "run", **options, data_dir=str(tmp_path / "data"))
    for change, (act, message) in OTHER_DATA.items():
        data, workdir = tmp_path / change, tmp_path / f"run, {change}"
        shutil.copytree(tmp_path / "data", data)
        shutil.copytree(tmp_path / "run", workdir)
        fit(workdir, **options, data_dir=str(data))  # it may move
        act(data)
        with pytest.raises(UserError, match=f"holds a run {message}.*--change_config"):
            fit(workdir, **options, data_dir=str(data))


def test_a_run_goes_on_with_other_data_if_it_is_told_to(tmp_path, capsys):
    write_classes(tmp_path / "data")
    options: dict[str, Any] = dict(dataset="folder", val_split="val", eval_every=1.0, decay_epochs=(0.5,))
    options["data_dir"] = str(tmp_path / "data")
    fit(tmp_path / "run", **options, epochs=1.0)
    rename_class(tmp_path / "data")
    fit(tmp_path / "run", **options, epochs=2.0, change_config=True)
    assert "a run with another config: epochs=2.0 (checkpoint: 1.0) and on other train data: 'cat'" in (
        capsys.readouterr().out
    )
    assert load_checkpoint(tmp_path / "run").metadata.class_names == ("dog", "emu", "yak")
    fit(tmp_path / "run", **options, epochs=2.0)  # from now on these are its data
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "data" / split / "yak")
    with pytest.raises(UserError, match=r"classes of .*train are not the 3 classes of the checkpoint"):
        fit(tmp_path / "run", **options, epochs=2.0, change_config=True)


def test_a_checkpoint_without_identity_of_its_data_resumes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_data_identity", lambda self: {})
        fit(tmp_path)
    assert load_checkpoint(tmp_path).metadata.data == {}
    fit(tmp_path)


def test_a_path_that_leaves_no_room_for_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"the path of the workdir has [\d,]+ bytes: give one of at most 3,696"):
        Trainer(recipe(), tmp_path.joinpath(*["y" * 200] * 19))


def test_the_loss_of_validation_is_named_after_what_it_measures(tmp_path):
    fit(tmp_path / "plain")
    fit(tmp_path / "smooth", label_smoothing=0.1)
    assert "val_loss" in read_metrics(tmp_path / "plain")[-1]
    row = read_metrics(tmp_path / "smooth")[-1]
    assert "val_cross_entropy" in row
    assert "val_loss" not in row


def test_a_run_on_an_image_folder_skips_and_counts_bad_files(tmp_path, capsys):
    from PIL import Image

    for split in ("train", "val"):
        for number in range(20):
            file = tmp_path / split / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), 20 * number % 256).save(file)
        (tmp_path / split / "class0/0.png").write_bytes(b"broken")
    options: dict[str, Any] = dict(dataset="folder", data_dir=str(tmp_path), val_split="validation")
    options |= dict(epochs=2.0, eval_every=1.0)
    with pytest.raises(UserError, match=r"class0/0.png\) cannot be decoded"):
        fit(tmp_path / "run", **options)
    fit(tmp_path / "run", **options, on_bad_image="skip")
    rows = [row for row in read_metrics(tmp_path / "run") if "val_top1" in row]
    assert [row["val_skipped_images"] for row in rows] == [1, 1]
    assert sum(row["train_skipped_images"] for row in rows) == 2
    assert "class0/0.png" in capsys.readouterr().err


def test_weights_and_biases_receives_the_metrics(tmp_path, monkeypatch):
    logged: list[Any] = []
    inits: list[Any] = []

    def init(**options):
        inits.append(options)
        return SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda: logged.append("end"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    fit(tmp_path / "run", wandb_project="lma")
    fit(tmp_path / "run", wandb_project="lma")
    assert [options["project"] for options in inits] == ["lma", "lma"]
    assert inits[0]["id"] == inits[1]["id"]
    assert inits[0]["config"]["model"] == "tiny_lma"
    assert [step for step, _ in logged[:18]] == list(range(1, 19))
    assert {"train/loss", "val/top1", "data_wait"} <= set(logged[5][1])
    assert logged[18] == "end"


def test_the_rate_and_the_wait_for_data_are_in_the_metrics(tmp_path):
    fit(tmp_path)
    rows = read_metrics(tmp_path)
    assert all(row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 100 for row in rows[1:])
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_a_trace_of_five_steps_can_be_opened(tmp_path, capsys):
    Trainer(recipe(), tmp_path, profile=True).fit()
    assert f"trace of steps 11 to 15: {tmp_path}/profile" in capsys.readouterr().out
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    with pytest.raises(UserError, match="--profile needs 15 steps, the run has 0 left"):
        Trainer(recipe(), tmp_path, profile=True).fit()
    with pytest.raises(UserError, match="is not UTF-8, which --profile needs"):
        Profiler(tmp_path / "\udcff", start=0, total=99)
