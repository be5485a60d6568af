"""Jobs of several processes: joining them, ending all of them on a failure, and stopping all of them on a signal."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lma_jax.errors import InterruptedRun, UserError
from lma_jax.sharding import steps_ahead

# Seconds without a heartbeat after which a process counts as dead, and the others end.
HEARTBEAT_TIMEOUT = 30
# How the libraries of collectives report that a peer is gone.
LOST_PEER = "gloo|nccl|connection reset|socket closed|unavailable|heartbeat|coordination service"


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the job. It must be called before anything else initialises JAX.

    Given all three arguments, this process takes every device of its machine. What the cluster is asked for comes with
    its division of devices: one for each process under Slurm and Open MPI.

    Args:
        coordinator: address and port of process 0, such as "10.0.0.1:1234". Under Slurm, Open MPI 4 or Kubernetes all
            three arguments may be None.
        num_processes: number of processes in the job.
        process_id: rank of this process, from 0.

    Raises:
        UserError: no cluster was recognised, or the others did not join within 5 minutes.
    """
    job = coordinator, num_processes, process_id
    detection = None if None in job else "deactivate"
    try:
        jax.distributed.initialize(
            *job, cluster_detection_method=detection, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({str(error).splitlines()[0]}): outside Slurm, Open MPI and Kubernetes, "
            "give every process --coordinator=<host>:<port>, --num_processes and --process_id"
        ) from error


@contextmanager
def ending_together() -> Iterator[None]:
    """Exits at once if this process of a job fails; a normal exit would block on the other processes."""
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
    if isinstance(error, RuntimeError | ValueError) and re.search(LOST_PEER, reason, re.IGNORECASE):
        print(
            f"error: {process} ends because it lost another one ({reason[:200]}); the same command resumes the run",
            file=sys.stderr,
        )
        return 1
    traceback.print_exc()
    return 1


class StopSignal:
    """Turns SIGTERM and SIGINT into an InterruptedRun at the next `check`; a second SIGINT ends the program at once.

    In a job of several processes, a signal to any of them stops all at the same `check`: the next one, or one later on
    accelerators, where dispatch runs ahead.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._received: str | None = None
        self._pending: list[jax.Array] = []
        if jax.process_count() > 1:
            self._flags = [self._flag(mesh, raised) for raised in (False, True)]
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    @staticmethod
    def _flag(mesh: Mesh, raised: bool) -> jax.Array:
        local = np.full(jax.local_device_count(), raised)
        return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(*mesh.axis_names)), local)

    def __enter__(self) -> "StopSignal":
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number in self._previous:
            self._restore(number)

    def check(self) -> None:
        """Raises InterruptedRun if the run is to stop. Every process must call it equally often."""
        if jax.process_count() == 1:
            stops = self._received is not None
        else:
            self._pending.append(self._any(self._flags[self._received is not None]))
            stops = len(self._pending) > steps_ahead() and bool(self._pending.pop(0))
        if stops:
            raise InterruptedRun(self._received or "a signal to another process")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._restore(number)
        self._received = signal.Signals(number).name

    def _restore(self, number: int) -> None:
        # None: the handler was that of JAX, whose coordination service ends the program.
        signal.signal(number, self._previous[signal.Signals(number)] or signal.SIG_DFL)
