"""A run that stands still ends, with the stacks of its threads; so does one whose data worker is killed."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lma_jax.data import loader
from lma_jax.data.loader import to_device
from lma_jax.errors import InterruptedRun, LostWorker
from lma_jax.training import distributed, watch
from lma_jax.training.watch import PeerWatch, StepWatch
from tests.helpers.commands import python

# A thread that would end the process ends by SystemExit.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def ends(monkeypatch) -> list[tuple[str, int]]:
    """How a watch would have ended this process; the thread that does ends instead."""
    found: list[tuple[str, int]] = []

    def end(message: str, code: int) -> None:
        found.append((message, code))
        raise SystemExit

    monkeypatch.setattr(watch, "end", end)
    return found


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.005)


def test_a_run_that_stands_still_ends_with_its_stacks(tmp_path, ends):
    with StepWatch(0.0005, tmp_path) as steps:
        steps.progress()
        wait_for(lambda: ends)
    ((message, code),) = ends
    assert code == 75
    assert "has made no step for 0.0005 minutes (config.step_timeout)" in message
    assert "the same command goes on from the newest checkpoint" in message
    assert "wait_for" in (tmp_path / "stacks-0.txt").read_text()


def test_the_clock_stands_before_the_first_step_while_paused_and_at_the_first_call(tmp_path, ends):
    ticks = 6 * 0.0005 * 60 / 4
    with StepWatch(0.0005, tmp_path) as steps:
        time.sleep(ticks)
        steps.progress()
        steps.pause()
        time.sleep(ticks)
        compiled = steps.uncounted_once(lambda seconds: time.sleep(seconds))
        compiled(ticks)
        assert ends == []
        compiled(2 * ticks)
    assert len(ends) == 1


def test_no_limit_is_no_watch(tmp_path, ends):
    with StepWatch(0, tmp_path) as steps:
        steps.progress()
        time.sleep(0.02)
    assert ends == []


class Store:
    """The key-value store of a job."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self.values[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


@pytest.fixture
def store(monkeypatch) -> Iterator[Store]:
    """That of a job of three processes, of which this is process 1; process 0 lives."""
    job = SimpleNamespace(client=Store(), process_id=1, num_processes=3)
    monkeypatch.setattr(watch.distributed, "global_state", job)
    monkeypatch.setattr(watch, "BEAT", 0.02)
    monkeypatch.setattr(watch, "LOST_AFTER", 0.2)
    ended = threading.Event()

    def sleep(seconds: float) -> None:
        if ended.wait(seconds):
            raise SystemExit  # of a thread that would run for the life of the process

    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=sleep))
    yield job.client
    ended.set()
    for thread in threading.enumerate():
        if thread.name == "peer watch":
            thread.join()


def test_a_silent_process_is_named_and_ends_the_others(store, ends):
    store.key_value_set("lma/beat/2", "1 pid 7 on node2")
    PeerWatch()
    for count in range(1000):
        store.key_value_set("lma/beat/0", f"{count} pid 5 on node0")
        time.sleep(0.01)
        if ends:
            break
    message, code = ends[0]
    assert code == 75
    assert "process 1 of 3 ends because process 2 (pid 7 on node2) gave no sign of life" in message


def test_a_lost_connection_names_the_process_whose_last_sign_came_after_it(store, ends):
    peers = PeerWatch()
    store.key_value_set("lma/beat/2", "9 pid 7 on node2")
    beating = threading.Event()

    def beat() -> None:
        count = 0
        while not beating.wait(0.005):
            count += 1
            store.key_value_set("lma/beat/0", f"{count} pid 5 on node0")

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(SystemExit):
        peers.lose("connection reset")
    beating.set()
    thread.join()
    assert ends[0][1] == 75
    assert "because process 2 (pid 7 on node2) is gone (connection reset); the same command" in ends[0][0]


def test_the_silence_of_all_is_that_of_process_0(store, ends, monkeypatch):
    store.key_value_set("lma/beat/0", "1 pid 5 on node0")
    PeerWatch()
    wait_for(lambda: "lma/beat/1" in store.values)
    time.sleep(0.05)

    def gone(*arguments, **options):
        raise RuntimeError("UNAVAILABLE")

    monkeypatch.setattr(store, "key_value_set", gone)
    wait_for(lambda: ends)
    assert "because process 0 (pid 5 on node0) gave no sign" in ends[0][0]


def test_a_process_that_fails_ends_the_others_with_its_code(store, ends):
    store.key_value_set("lma/failed/2", "2 image 3 cannot be decoded")
    PeerWatch()
    wait_for(lambda: ends)
    assert ends[0] == ("error: process 1 of 3 ends because process 2 failed: image 3 cannot be decoded", 2)


def test_only_what_stops_one_process_alone_ends_the_others(monkeypatch):
    failed = []
    peers = SimpleNamespace(fail=lambda reason, code: failed.append(code), lose=lambda reason: failed.append(reason))
    monkeypatch.setattr(distributed, "_peers", peers, raising=False)
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    with pytest.raises(InterruptedRun), distributed.ending_together():
        raise InterruptedRun("all stop")
    assert failed == []
    with contextlib.suppress(LostWorker), distributed.ending_together():
        raise LostWorker("killed")
    assert failed[0] == 75


class Worker:
    name, killed = "worker", False

    def __init__(self) -> None:
        self.exitcode: int | None = None

    def kill(self) -> None:
        self.killed = True


class Batches:
    """Batches of two workers, the first of which is killed after the first batch or, if it is `waited` for, before."""

    def __init__(self, workers: list[Worker], waited: bool) -> None:
        self._workers, self._waited, self._count = workers, waited, 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self):
        self._count += 1
        if self._waited:
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs above.")
        self._workers[0].exitcode = -signal.SIGKILL if self._count > 1 else None
        return {"label": np.zeros(1)}

    def close(self) -> None:
        assert self._workers[1].killed, "it would wait for them"


@pytest.mark.parametrize("waited", [False, True])
def test_a_killed_worker_is_noticed_at_once_and_the_others_end(monkeypatch, waited):
    workers = [Worker(), Worker()]
    monkeypatch.setattr(loader.multiprocessing, "active_children", lambda: workers)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(LostWorker, match=r"the end of a data worker \(by SIGKILL; if memory was short"):
        list(to_device(Batches(workers, waited), sharding))


def test_another_error_of_the_reader_stays_what_it_is():
    class Buggy(Batches):
        def __next__(self):
            raise RuntimeError("a bug")

        def close(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="a bug"):
        next(to_device(Buggy([], waited=False), jax.sharding.SingleDeviceSharding(jax.devices()[0])))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libstdc++")
@pytest.mark.process
def test_cpp_that_cannot_call_back_ends_with_one_line():
    """What XLA does when its service is gone, without a job: a std::bad_cast that nobody catches."""
    script = """
import ctypes
from lma_jax.training import watch
watch._on_bad_cast(lambda: watch.end("error: lost", 75))
ctypes.CDLL("libstdc++.so.6")._ZSt16__throw_bad_castv()
"""
    ended = python("-c", script)
    assert (ended.returncode, ended.stderr) == (75, "error: lost\n")
