"""Saving: the newest and the best are kept over restarts, a kill leaves the old or the new, no failure is silent."""

import contextlib
import os
import resource
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lma_jax.checkpoint import manager, writer
from lma_jax.checkpoint.format import Checkpoint, Metadata, load_checkpoint, newest_good
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.errors import InterruptedRun, Occasionally, UserError


def state(step: int, *, width: int = 5) -> dict[str, Any]:
    return {"step": np.int32(step), "weights": np.arange(width, dtype=np.float32) + step}


def metadata(**metrics: float) -> Metadata:
    return Metadata("tiny", 3, ("a", "b", "c"), {}, metrics)


def names(workdir: Path) -> list[str]:
    return sorted((path.name for path in (workdir / "checkpoints").iterdir()), key=lambda name: (len(name), name))


def save_and_end(workdir: Path, step: int, top1: float | None = None, keep: int = 2) -> None:
    """One run that saves one state, evaluated or not."""
    metrics = {} if top1 is None else {"val_top1": top1}
    with Checkpoints(workdir, keep=keep) as checkpoints:
        checkpoints.save(state(step), metadata(**metrics), top1=metrics.get("val_top1", manager.NOT_EVALUATED))


def finish(checkpoints: Checkpoints, minutes: float = 0.0) -> None:
    checkpoints.finish(minutes=minutes, check=lambda: None)


def test_the_newest_and_the_best_are_kept_over_restarts(tmp_path):
    for step, top1 in enumerate([30.0, 50.0, None, 40.0, None, None], start=1):
        save_and_end(tmp_path, step, top1)
    assert names(tmp_path) == ["2", "5", "6"]
    save_and_end(tmp_path, 7, 60.0)
    save_and_end(tmp_path, 8)
    assert names(tmp_path) == ["7", "8"]
    assert load_checkpoint(tmp_path, "best").step == 7


def test_a_state_that_is_not_evaluated_is_never_the_best(tmp_path):
    for step, top1 in [(1, None), (2, 0.0), (3, None), (4, None), (5, None)]:
        save_and_end(tmp_path, step, top1, keep=1)
    assert names(tmp_path) == ["2", "5"]


def test_damaged_checkpoints_and_leftovers_do_not_pile_up(tmp_path):
    for step in (1, 2, 3):
        save_and_end(tmp_path, step, 10.0 * step, keep=9)
    (tmp_path / "checkpoints/2/record/metadata").write_text("{")
    for leftover in ("4.tmp", "4.orbax-checkpoint-tmp", "3.replaced"):
        (tmp_path / "checkpoints" / leftover).mkdir()
    (tmp_path / "checkpoints/1").rename(tmp_path / "checkpoints/1.replaced")
    with Checkpoints(tmp_path, keep=2):
        assert names(tmp_path) == ["1", "2", "3"]
    save_and_end(tmp_path, 4, 0.0)
    assert names(tmp_path) == ["3", "4"]


def test_nothing_is_deleted_while_the_disk_does_not_answer(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save_and_end(tmp_path, step, 100.0 - step, keep=9)
    read_bytes = Path.read_bytes

    def unreadable(path, *arguments, **options):
        if path.parts[-3] == "1":
            raise OSError(5, "Input/output error")
        return read_bytes(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", unreadable)
        save_and_end(tmp_path, 4, 0.0, keep=1)
        assert names(tmp_path) == ["1", "2", "3", "4"]
    save_and_end(tmp_path, 5, 0.0, keep=1)
    assert names(tmp_path) == ["1", "5"]


class Killed(BaseException):
    """Ends a write as a kill would, without any clean-up."""


@pytest.mark.parametrize("exists", [False, True])
def test_a_write_that_is_killed_at_any_moment_leaves_the_old_or_the_new(tmp_path, monkeypatch, exists):
    moments = []
    for number in range(100):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for step in (1, 2)[: 1 + exists]:
            writer.write(folder, Checkpoint(step, state(step), metadata()))
        calls = iter(range(100))

        def killing(function, number=number, calls=calls):
            def call(*arguments, **options):
                if next(calls) == number:
                    raise Killed
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for module, name in ((os, "fsync"), (os, "mkdir"), (os, "rename"), (shutil, "rmtree")):
                patch.setattr(module, name, killing(getattr(module, name)))
            patch.setattr(Path, "mkdir", killing(Path.mkdir))
            patch.setattr(Path, "rename", killing(Path.rename))
            writer.write(folder, Checkpoint(2, state(2), metadata(val_top1=5.0)))
            break
        writer.clean_up(folder)
        found = newest_good(folder)
        moments.append((found.step, bool(found.metadata.metrics)))
        assert {path.name for path in folder.iterdir()} <= {"1", "2"}
    old = (2, False) if exists else (1, False)
    assert sorted({*moments}) == sorted({old, (2, True)})
    assert moments == sorted(moments), "once the new one is there, it stays"


def test_a_failure_in_the_middle_of_a_write_is_one_line_and_the_old_checkpoint_stays(tmp_path, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save_and_end(tmp_path, 1)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            checkpoints.save(state(2, width=100_000), metadata())
            with pytest.raises(
                UserError, match=r"after step 2 .*\(File too large\); the newest checkpoint is 1\. Make"
            ):
                finish(checkpoints)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert names(tmp_path) == ["1"]
    assert capfd.readouterr().err == ""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(manager, "RETRY", 0.01)
    monkeypatch.setattr(manager, "TICK", 0.01)


def test_a_workdir_that_is_deleted_is_a_failure_and_does_not_come_back(tmp_path, capfd, impatient):
    workdir = tmp_path / "run"
    with Checkpoints(workdir, keep=2) as checkpoints:
        checkpoints.save(state(1), metadata())
        checkpoints.wait()
        shutil.rmtree(workdir)
        checkpoints.save(state(2), metadata())
        with pytest.raises(
            UserError, match=r"after step 2 .*\(No such file or directory\); there is no checkpoint yet"
        ):
            finish(checkpoints, minutes=0.002)
    assert not workdir.exists()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: the state after step 2 could not be saved")
    assert line.endswith("trying again for 0.002 minutes (config.save_wait)")


def test_a_save_that_ends_just_after_it_was_seen_is_not_started_again(tmp_path, impatient, monkeypatch):
    write, seen = writer.write, threading.Event()

    def write_once_seen(*arguments):
        seen.wait(10)
        write(*arguments)

    def busy_until_now(self):
        was_busy = self._thread is not None and self._thread.is_alive()
        if was_busy:
            seen.set()
            self._thread.join()
        return was_busy

    monkeypatch.setattr(writer, "write", write_once_seen)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state(1), metadata())
        monkeypatch.setattr(writer.SaveManager, "busy", property(busy_until_now))
        finish(checkpoints)
    assert load_checkpoint(tmp_path).step == 1


def test_a_workdir_that_comes_back_in_time_receives_the_state(tmp_path, impatient):
    workdir, away = tmp_path / "run", tmp_path / "away"
    with Checkpoints(workdir, keep=2) as checkpoints:
        workdir.rename(away)
        checkpoints.save(state(2), metadata())
        threading.Timer(0.2, away.rename, [workdir]).start()
        finish(checkpoints, minutes=1)
    assert load_checkpoint(workdir).step == 2


def test_a_signal_ends_the_wait_for_the_disk(tmp_path, impatient):
    def check() -> None:
        raise InterruptedRun("SIGTERM")

    with Checkpoints(tmp_path / "run", keep=2) as checkpoints:
        shutil.rmtree(tmp_path / "run")
        checkpoints.save(state(2), metadata())
        with pytest.raises(UserError, match=r"^SIGTERM ended the wait for the disk: the state after step 2 could not"):
            checkpoints.finish(minutes=9, check=check)


def test_a_state_that_no_later_save_replaced_is_tried_again_at_the_end(tmp_path, capsys, monkeypatch, impatient):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
            checkpoints.save(state(1), metadata())
            checkpoints.poll()
        finish(checkpoints, minutes=1)
        assert checkpoints.newest == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_failure_that_repeats_itself_is_said_ever_more_rarely(tmp_path, capsys, monkeypatch):
    free = iter(range(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, next(free)))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 101):
            checkpoints.save(state(step, width=9999), metadata())
            checkpoints.poll()
        with pytest.raises(UserError, match="after step 100 could not be saved"):
            finish(checkpoints)
    assert capsys.readouterr().err.count("\n") == 7
    occasionally = Occasionally()
    assert [occasionally.due(f"failed at {step}") for step in range(8)] == [True, True, False, True, *[False] * 3, True]
    assert occasionally.due("another")


def test_reporting_a_failed_save_never_raises(tmp_path, monkeypatch, impatient):
    class Closed:
        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = write

    def fail(*_, **__):
        raise OSError(116, "Stale file handle")

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stderr", Closed())
            for target in ("manager.clean_up", "manager.saved_steps", "writer.write"):
                patch.setattr(f"lma_jax.checkpoint.{target}", fail)
            checkpoints.save(state(1), metadata())
            checkpoints.wait()
        finish(checkpoints, minutes=1)
    assert names(tmp_path) == ["1"]


def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write to the workdir .*: File exists"):
        Checkpoints(tmp_path, keep=2)
