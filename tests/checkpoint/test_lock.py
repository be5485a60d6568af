"""One writer at a time on a workdir."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from lma_jax.checkpoint import lock
from lma_jax.checkpoint.lock import sole_writer
from lma_jax.errors import UserError
from tests.helpers.commands import ROOT

HOLDER = """
import sys, pathlib
from lma_jax.checkpoint.lock import sole_writer
with sole_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.process
def test_another_process_is_refused_until_the_holder_ends_or_is_killed(tmp_path):
    workdir = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # a refusal does not weaken the lock
            with pytest.raises(
                UserError, match=rf"run is in use by process {holder.pid} on {os.uname().nodename} \(si"
            ):
                sole_writer(workdir).__enter__()
        holder.kill()
    assert json.loads((workdir / lock.NAME).read_text())["pid"] == holder.pid
    with sole_writer(workdir):
        assert json.loads((workdir / lock.NAME).read_text())["pid"] == os.getpid()
    assert list(workdir.iterdir()) == []


def test_a_second_run_of_this_process_is_refused_and_takes_nothing(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with sole_writer(tmp_path):
        for path in (tmp_path, link):
            with pytest.raises(UserError, match="in use by this process"):
                sole_writer(path).__enter__()
        script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        held = subprocess.run([sys.executable, "-c", script, tmp_path / lock.NAME], capture_output=True, text=True)
        assert "BlockingIOError" in held.stderr
    with sole_writer(tmp_path):
        pass


def without_locks(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_locks_a_file_that_its_holder_touches_is_respected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "lockf", without_locks)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    with sole_writer(tmp_path), pytest.MonkeyPatch.context() as other_process:
        other_process.setattr(lock, "_held", set())
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
            sole_writer(tmp_path).__enter__()
    assert "has no locks" in capsys.readouterr().err
    (tmp_path / lock.NAME).write_text('{"pid": 1}')  # left by a run that was killed
    with sole_writer(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"pid": "x"}', b"[" * 2000])
def test_a_lock_that_says_nothing_is_a_lock(tmp_path, monkeypatch, content):
    (tmp_path / lock.NAME).write_bytes(content)

    def taken(descriptor, operation):
        raise BlockingIOError(errno.EAGAIN, "taken")

    monkeypatch.setattr(fcntl, "lockf", taken)
    with pytest.raises(UserError, match="in use by another process"):
        sole_writer(tmp_path).__enter__()


def test_a_folder_that_cannot_be_written_is_an_error_for_users(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / lock.NAME).mkdir()
    for workdir in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="cannot write to the workdir"):
            sole_writer(workdir).__enter__()
