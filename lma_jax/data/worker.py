"""How the processes of the loader meet signals and end. Only the standard library is imported."""

import os
import signal
import threading
import time
from multiprocessing import resource_tracker

from lma_jax import output
from lma_jax.signals import HANGUP, STOPPING


def start_tracker() -> None:
    """Starts the process of multiprocessing that frees shared memory, if it does not run yet, deaf to SIGHUP.

    It ignores Ctrl-C and SIGTERM on its own, but the SIGHUP of a closed terminal would end it, with dozens of
    tracebacks from the one that takes its place. A signal that comes meanwhile is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANGUP)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent: int, worker: int = 0, workers: int = 1) -> None:
    """Ends this process when process `parent` ends, and makes it ignore the signals that stop a run.

    Grain leaves its workers running when their parent is killed. Ctrl-C, a cluster's SIGTERM and the SIGHUP of a closed
    terminal reach the workers too and would stop the data of a parent that is about to save. A warning that a worker
    cannot print ends it as little.
    """
    output.never_required()
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
