"""A run is a function of its config: killed at any moment and started again, it ends with the same bits."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lma_jax.training.reporting.metrics import read_metrics
from tests.helpers.commands import TINIEST, Command, run, start
from tests.helpers.runs import STEPS, assert_same_bits, deterministic, final_state

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    output = run("lma_jax.train", *TINIEST, f"--workdir={workdir}")
    assert all(f"step {step}/{STEPS}  " in output for step in range(1, STEPS + 1))
    return workdir


def test_two_runs_are_bit_identical_whatever_is_drawn(undisturbed, tmp_path):
    run("lma_jax.train", *TINIEST, f"--workdir={tmp_path}", "--config.gradcam_images=2")
    assert_same_bits(tmp_path, undisturbed)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("gradcam")] == [6, 12, 18]
    assert [event.step for event in events.Images("examples")] == [1]
    assert [event.step for event in events.Tensors("_hparams_/session_end_info")] == [18]


def test_a_run_in_a_folder_whose_name_no_library_likes_is_the_same(undisturbed, tmp_path):
    workdir = tmp_path / os.fsdecode(b"r[u]n?\xff")
    output = run("lma_jax.train", *TINIEST, f"--workdir={workdir}")
    assert f"are in {tmp_path}/r[u]n?\\udcff" in output
    assert_same_bits(workdir, undisturbed)


def test_another_seed_gives_other_weights(undisturbed, tmp_path):
    run("lma_jax.train", *TINIEST, f"--workdir={tmp_path}", "--config.seed=1")
    kernel = "params/conv1/kernel"
    assert not np.array_equal(final_state(tmp_path)[kernel], final_state(undisturbed)[kernel])


def after_step(number: int):
    """Waits for the line of a step."""
    return lambda command, workdir: command.wait_for_line(f"step {number}/")


def during_a_checkpoint_write(command: Command, workdir: Path) -> None:
    command.wait_until(lambda: any((workdir / "checkpoints").glob("*tmp*")))


@pytest.mark.parametrize(
    "wait",
    [
        after_step(3),
        after_step(12),  # evaluation follows
        during_a_checkpoint_write,
    ],
    ids=["before the first checkpoint", "before evaluation", "during a checkpoint write"],
)
def test_a_killed_run_ends_as_if_undisturbed(undisturbed, tmp_path, wait):
    command = start("lma_jax.train", *TINIEST, f"--workdir={tmp_path}")
    wait(command, tmp_path)
    command.send_signal(signal.SIGKILL)
    assert command.finish().code == -signal.SIGKILL
    run("lma_jax.train", *TINIEST, f"--workdir={tmp_path}")
    assert_same_bits(tmp_path, undisturbed)
    assert deterministic(read_metrics(tmp_path)) == deterministic(read_metrics(undisturbed))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_a_run_and_the_same_command_resumes_it(undisturbed, tmp_path, number):
    command = start("lma_jax.train", *TINIEST, f"--workdir={tmp_path}")
    after_step(int(np.random.default_rng().integers(2, 6)))(command, tmp_path)
    command.send_signal(number)
    code, _, errors = command.finish()
    assert code == 75
    assert re.fullmatch(rf"stopped by {number.name} after step \d+; the same command goes on from .*\n", errors)
    run("lma_jax.train", *TINIEST, f"--workdir={tmp_path}")
    assert_same_bits(tmp_path, undisturbed)
    assert deterministic(read_metrics(tmp_path)) == deterministic(read_metrics(undisturbed))


def test_a_finished_run_has_nothing_left_to_do(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_text()
    output = run("lma_jax.train", *TINIEST, f"--workdir={undisturbed}")
    assert f"resuming after step {STEPS}" in output
    assert (undisturbed / "metrics.jsonl").read_text() == before
