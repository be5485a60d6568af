"""Jobs of several processes: joining them, ending all of them on a failure, and stopping all of them on a signal."""

import re
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lma_jax.checkpoint.lock import sole_writer
from lma_jax.errors import InterruptedRun, LostWorker, UserError
from lma_jax.sharding import steps_ahead
from lma_jax.signals import INTERRUPTED, heeded
from lma_jax.training.watch import XLA_HEARTBEAT_TIMEOUT, PeerWatch, processes, xla_defers_to

# Seconds within which a second signal is the first one, sent twice: by a scheduler, or to a group and its leader.
MOMENT = 1.0
# How the libraries of collectives report that a peer is gone.
LOST_PEER = "gloo|nccl|connection reset|socket closed|unavailable|heartbeat|coordination service"

_peers: PeerWatch  # of the job that `join` joined


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
    global _peers
    job = coordinator, num_processes, process_id
    detection = None if None in job else "deactivate"
    options: dict[str, Any] = dict(heartbeat_timeout_seconds=XLA_HEARTBEAT_TIMEOUT)
    try:
        with xla_defers_to(lambda: _peers.lose("the job's coordination service ended")):
            jax.distributed.initialize(*job, cluster_detection_method=detection, **options)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({str(error).splitlines()[0]}): outside Slurm, Open MPI and Kubernetes, "
            "give every process --coordinator=<host>:<port>, --num_processes and --process_id"
        ) from error
    _peers = PeerWatch()


@contextmanager
def ending_together() -> Iterator[None]:
    """Exits at once if this process of a job fails, and so do the others; a normal exit would block on them."""
    try:
        yield
    except Exception as error:
        stops_alone = isinstance(error, LostWorker) or not isinstance(error, InterruptedRun)
        if processes() == 1 or not stops_alone:
            raise
        reason = " ".join(str(error).split())
        if isinstance(error, UserError):
            _peers.fail(reason, 2)
        if isinstance(error, LostWorker):
            _peers.fail(reason, INTERRUPTED)
        if isinstance(error, RuntimeError | ValueError) and re.search(LOST_PEER, reason, re.IGNORECASE):
            _peers.lose(reason[:200])
        traceback.print_exc()
        _peers.fail(f"{type(error).__name__}: {reason}", 1)


@contextmanager
def sole_writer_of_job(workdir: Path) -> Iterator[None]:
    """Process 0 holds the workdir for all processes of the job.

    Raises:
        UserError: another job holds it, or it cannot be written; the same in all processes.
    """
    with ExitStack() as stack:
        refusal = ""
        if jax.process_index() == 0:
            try:
                stack.enter_context(sole_writer(workdir))
            except UserError as error:
                refusal = str(error)
        if refusal := of_first_process(refusal):
            raise UserError(refusal)
        yield


def of_first_process(text: str) -> str:
    """The text that the first process gives, in all processes, cut to 1,000 bytes. Every process must call it."""
    if jax.process_count() == 1:
        return text
    encoded = text.encode(errors="backslashreplace")[:1000]
    shared = multihost_utils.broadcast_one_to_all(np.frombuffer(encoded.ljust(1000, b"\0"), np.uint8))
    return bytes(shared).rstrip(b"\0").decode(errors="ignore")


# What a process asks the others for; the highest request of all is what all of them do.
_NOTHING, _SAVE, _STOP = range(3)


class StopSignal:
    """Turns SIGTERM, SIGINT and SIGHUP into an InterruptedRun at the next `check`.

    A signal that is sent again within a moment is the same one, and later ones before the `check` change nothing, so
    that the state is saved; but a second SIGINT ends the program at once. After the `check`, the next signal counts
    again. SIGHUP stays ignored under nohup.

    In a job of several processes, a signal to any of them stops all at the same `check`: the next one, or one later on
    accelerators, where dispatch runs ahead.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._received: str | None = None
        self._deaf_until = 0.0
        self._pending: list[jax.Array] = []
        if jax.process_count() > 1:
            self._flags = [self._flag(mesh, number) for number in (_NOTHING, _SAVE, _STOP)]
            self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    @staticmethod
    def _flag(mesh: Mesh, number: int) -> jax.Array:
        local = np.full(jax.local_device_count(), number, np.int32)
        return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(*mesh.axis_names)), local)

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._receive) for number in heeded()}
        self._wakeup = signal.set_wakeup_fd(-1)  # last, so that no signal falls between the old way and this one
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, previous in self._previous.items():
            # None: the handler was that of JAX, whose coordination service ends the program.
            signal.signal(number, previous or signal.SIG_DFL)

    def check(self, *, save: bool = False) -> bool:
        """Agrees with the other processes, each of which must call it equally often, on what to do now.

        Args:
            save: whether this process asks for a save.

        Returns:
            Whether any process asked for a save.

        Raises:
            InterruptedRun: the run is to stop.
        """
        request = _STOP if self._received else _SAVE if save else _NOTHING
        agreed = self._agreed(request)
        if agreed < _STOP:
            return agreed == _SAVE
        received, self._received = self._received, None
        self._deaf_until = time.monotonic() + MOMENT
        raise InterruptedRun(received or "a signal to another process")

    def _agreed(self, request: int) -> int:
        if jax.process_count() == 1:
            return request
        self._pending.append(self._highest(self._flags[request]))
        return int(self._pending.pop(0)) if len(self._pending) > steps_ahead() else _NOTHING

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now < self._deaf_until:
            return
        if self._received and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._received = self._received or signal.Signals(number).name
        self._deaf_until = now + MOMENT
