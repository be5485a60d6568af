"""A job of two processes: the same run as one process, ended together and resumed in any shape."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lma_jax.training.distributed import of_first_process
from lma_jax.training.reporting.metrics import read_metrics
from tests.helpers.commands import TINIEST, Command, free_port, python, run, start
from tests.helpers.runs import assert_same_bits, deterministic


def start_pair(workdir: Path) -> list[Command]:
    coordinator = f"127.0.0.1:{free_port()}"
    job = (*TINIEST, f"--workdir={workdir}", f"--coordinator={coordinator}", "--num_processes=2")
    return [start("lma_jax.train", *job, f"--process_id={rank}") for rank in range(2)]


def test_all_processes_have_the_text_of_the_first(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shared: list[np.ndarray] = []

    def broadcast(value: np.ndarray) -> np.ndarray:
        shared.append(value)
        return shared[0]

    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    for text, expected in (("holds é", "holds é"), ("", ""), ("\udcff", "\\udcff"), ("ä" * 600, "ä" * 500)):
        shared.clear()
        assert [of_first_process(own) for own in (text, "another", "")] == [expected] * 3


JOIN = """
import jax
from lma_jax.training.distributed import join
join("127.0.0.1:{port}", 1, 0)
print(jax.config.values["jax_cuda_visible_devices"])
"""


@pytest.mark.process
def test_a_process_whose_job_is_given_takes_every_device_under_a_launcher_too(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "0.0;tcp://127.0.0.1:1")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    done = python("-c", JOIN.format(port=free_port()))
    assert done.stdout == "all\n", done.stderr


@pytest.mark.process
def test_two_processes_train_as_one_through_a_kill_a_signal_and_a_change_of_shape(tmp_path):
    workdir, reference = tmp_path / "job", tmp_path / "one"
    run("lma_jax.train", *TINIEST, f"--workdir={reference}", devices=2)

    first, second = start_pair(workdir)
    first.wait_for_line("step 9/")
    second.send_signal(signal.SIGKILL)
    code, _, errors = first.finish(timeout=60)
    assert code == 75
    assert "error: process 0 of 2 ends because process 1 (pid " in errors, errors
    assert "the same command goes on from the newest checkpoint" in errors
    second.finish()

    first, second = start_pair(workdir)
    first.wait_for_line("step 8/")  # it resumed after step 6
    second.send_signal(signal.SIGTERM)
    for command in (first, second):
        code, _, errors = command.finish(timeout=60)
        assert code == 75, errors
        assert "the same command goes on from the newest checkpoint" in errors

    run("lma_jax.train", *TINIEST, f"--workdir={workdir}", devices=2)
    assert_same_bits(workdir, reference)
    assert deterministic(read_metrics(workdir)) == deterministic(read_metrics(reference))
