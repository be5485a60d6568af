"""Jobs of several processes: joining them, ending them together, and stopping them on a signal."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

from lma_jax.errors import InterruptedRun, UserError

# Seconds without a sign of life after which a process counts as dead, and the others end.
HEARTBEAT_TIMEOUT = 30


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the job's other processes; call it before anything else touches JAX.

    Args:
        coordinator: address and port of the first process, such as "10.0.0.1:1234"; None where Slurm, Open MPI or
            Kubernetes tells it, and then the other two as well.
        num_processes: processes in the job.
        process_id: rank of this one, from 0.

    Raises:
        UserError: no cluster was recognised, or the others did not come within 5 minutes.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({str(error).splitlines()[0]}): outside Slurm, Open MPI and Kubernetes, "
            "give every process --coordinator=<host>:<port>, --num_processes and --process_id"
        ) from error


@contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process at once where its part of a job fails: an orderly exit would wait for the others in vain."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, InterruptedRun):
            raise
        sys.stdout.flush()
        code = _explain(error)
        sys.stderr.flush()
        os._exit(code)


def _explain(error: Exception) -> int:
    process = f"process {jax.process_index()} of {jax.process_count()}"
    reason = " ".join(str(error).split())
    if isinstance(error, UserError):
        print(f"error: {reason} ({process})", file=sys.stderr)
        return 2
    if isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"error: {process} ends, since it lost another one ({reason[:200]}); the same command resumes the run",
            file=sys.stderr,
        )
        return 1
    traceback.print_exc()
    return 1


class StopSignal:
    """Turns SIGTERM and SIGINT into an InterruptedRun at the next `check`; a second SIGINT ends the program at once.

    In a job of several processes a signal to one of them stops all at the same `check`.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._checks = 0
        # In a job, JAX itself receives SIGTERM, and must keep it.
        self._signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._receive) for number in self._signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises InterruptedRun if the run is to stop; every process must call it equally often."""
        self._checks += 1
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(self._checks):
                raise InterruptedRun("a signal")
        elif self._received is not None:
            raise InterruptedRun(self._received.name)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._previous[signal.Signals(number)])
        self._received = signal.Signals(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
