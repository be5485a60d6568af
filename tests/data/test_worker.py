"""A worker process ends with its parent."""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT

WORKER = """
import os, runpy, signal, sys, time
end_with_parent = runpy.run_path("lma_jax/data/worker.py")["end_with_parent"]
end_with_parent(int(sys.argv[1]))
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.process
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_ends_with_its_parent_and_at_no_signal(moment):
    """Even if the parent was killed before the worker looked for it."""
    parent, seconds = (-1, 20) if moment == "before" else (os.getpid(), 0.2)
    process = subprocess.run([sys.executable, "-c", WORKER, str(parent), str(seconds)], cwd=ROOT, timeout=30)
    assert process.returncode == (1 if moment == "before" else 0)


TRACKER = """
import os, runpy, select, signal
from multiprocessing import resource_tracker, shared_memory
runpy.run_path("lma_jax/data/worker.py")["start_tracker"]()
tracker = resource_tracker._resource_tracker._pid
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
    os.kill(tracker, number)
assert select.select([os.pidfd_open(tracker)], [], [], 0.5)[0] == [], "it has ended"
memory = shared_memory.SharedMemory(create=True, size=8)
memory.close()
memory.unlink()
os.kill(os.getpid(), signal.SIGHUP)
"""


@pytest.mark.process
def test_the_tracker_of_shared_memory_outlives_a_closed_terminal_and_its_parent_does_not():
    process = subprocess.run([sys.executable, "-c", TRACKER], cwd=ROOT, timeout=30, capture_output=True)
    assert (process.returncode, process.stderr) == (-signal.SIGHUP, b"")
