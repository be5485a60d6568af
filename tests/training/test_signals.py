"""Signals: what a run hears, and when all processes of a job agree on it."""

import os
import signal
import time
from functools import partial

import jax
import pytest

from lma_jax.errors import InterruptedRun
from lma_jax.sharding import data_mesh
from lma_jax.training import distributed
from lma_jax.training.distributed import StopSignal
from tests.helpers.commands import result


@pytest.fixture
def stop():
    with StopSignal(data_mesh()) as stop:
        yield stop


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_once_however_often_it_is_sent(stop, number):
    assert not stop.check()
    send(number, number, signal.SIGTERM)
    with pytest.raises(InterruptedRun, match=signal.Signals(number).name):
        stop.check()
    send(number)  # by a scheduler that signals every process, a moment later
    assert not stop.check()


def test_later_signals_count_again(stop, monkeypatch):
    monkeypatch.setattr(distributed, "MOMENT", 0.0)
    for number in (signal.SIGTERM, signal.SIGINT):
        send(number, signal.SIGTERM)
        with pytest.raises(InterruptedRun, match=signal.Signals(number).name):
            stop.check()


def test_a_second_sigint_before_the_check_ends_the_program_at_once(stop, monkeypatch):
    sent = []
    monkeypatch.setattr(distributed, "MOMENT", 0.0)
    monkeypatch.setattr(signal, "raise_signal", lambda number: sent.append((number, signal.getsignal(number))))
    send(signal.SIGINT, signal.SIGINT)
    assert sent == [(signal.SIGINT, signal.SIG_DFL)]


def test_handlers_are_those_from_before_and_nohup_is_respected():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal(data_mesh()) as stop:
            send(signal.SIGHUP)
            assert not stop.check()
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_processes_of_a_job_agree_on_saves_and_stops_at_the_same_check(monkeypatch, ahead):
    """One process stands for all: its requests go the way of the job's, and come back as many checks later."""
    mesh = data_mesh()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda *_: 2)
        patch.setattr(distributed, "steps_ahead", lambda: ahead)
        make = jax.make_array_from_process_local_data
        patch.setattr(
            jax, "make_array_from_process_local_data", lambda sharding, data: make(sharding, data, data.shape)
        )
        with StopSignal(mesh) as stop:
            asked = [False, True, False, False, True, False]
            assert [stop.check(save=save) for save in asked] == [False] * ahead + asked[: len(asked) - ahead]
            send(signal.SIGTERM)
            for _ in range(ahead):
                stop.check()
            with pytest.raises(InterruptedRun, match="SIGTERM"):
                stop.check(save=True)


def interrupt_start(number: int) -> None:
    """Sends a signal when the flags are defined, while libraries are imported."""
    from lma_jax import cli

    def define_config() -> None:
        send(number)
        time.sleep(60)

    cli.define_config = define_config


def interrupt_listing() -> None:
    from lma_jax import cli

    def models_named(pattern: str) -> list[str]:
        send(signal.SIGINT)
        return []

    cli.models_named = models_named


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_start_up_is_one_line(number, tmp_path):
    workdir = tmp_path / "run"
    code, output, errors = result("lma_jax.train", f"--workdir={workdir}", setup=partial(interrupt_start, number))
    assert (code, output) == (75, "")
    assert errors == f"stopped by {number.name} with nothing to save; the same command goes on\n"
    assert not workdir.exists()


@pytest.mark.process
def test_ctrl_c_ends_any_command_with_one_line():
    assert result("convert.flops", "--model=*", setup=interrupt_listing) == (130, "", "stopped by SIGINT\n")
