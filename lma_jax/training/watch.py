"""Ends a process that stands still, or whose peers do, so that a scheduler starts the run again."""

import contextlib
import ctypes
import faulthandler
import functools
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from jax._src import distributed

from lma_jax.signals import INTERRUPTED

# Seconds between signs of life of the processes of a job, and without one after which a process is lost.
BEAT = 1.0
LOST_AFTER = 20.0
# Of XLA, whose own detection ends the process with SIGABRT and a page of text: later than the one above.
XLA_HEARTBEAT_TIMEOUT = 100
# Seconds for which process 0, where the others meet, outlives them, so that they can say why they end.
LAST_WORDS = 3.0
RESUMES = "the same command goes on from the newest checkpoint"

_ending = threading.Lock()


def end(message: str, code: int) -> NoReturn:
    """Ends this process at once with a line on stderr, and its children with it.

    Nothing can hold it up: neither a stream that blocks nor a thread that hangs. Of several threads that call it, the
    first one speaks.
    """
    _ending.acquire()

    def say() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            print(message, file=sys.stderr, flush=True)

    _within(5, say)
    for child in multiprocessing.active_children():
        child.kill()
    if processes() > 1 and rank() == 0:
        time.sleep(LAST_WORDS)
    os._exit(code)


class StepWatch:
    """Ends the process if its training stands still: no step, no batch of evaluation for a time.

    Args:
        minutes: the time; 0 never ends it.
        folder: receives the stacks of all threads.
    """

    TICK = 1.0

    def __init__(self, minutes: float, folder: Path) -> None:
        self._limit = 60 * minutes
        self._folder = folder
        self._minutes = minutes
        self._idle: float | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> "StepWatch":
        if self._limit:
            threading.Thread(target=self._run, name="step watch", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def progress(self) -> None:
        """Starts the clock anew."""
        with self._lock:
            self._idle = 0.0

    def pause(self) -> None:
        """Stops the clock until the next `progress`, for what may take any time: compilation, saving."""
        with self._lock:
            self._idle = None

    def uncounted_once(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose first call, which compiles it, stops the clock."""
        pending = [True]

        def call(*arguments: Any) -> Any:
            if not pending:
                return function(*arguments)
            pending.clear()
            self.pause()
            try:
                return function(*arguments)
            finally:
                self.progress()

        return call

    def _run(self) -> None:
        # Ticks are counted, not the clock: while a process is suspended, time is no sign of a hang.
        tick = min(self.TICK, self._limit / 4)
        while not self._ended.wait(tick):
            with self._lock:
                self._idle = None if self._idle is None else self._idle + tick
                expired = self._idle is not None and self._idle >= self._limit
            if expired:
                self._end()

    def _end(self) -> None:
        path = self._folder / f"stacks-{rank()}.txt"

        def write() -> None:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)

        written = _within(10, write)
        stacks = f"the stacks of its threads are in {path}" if written else f"{path} cannot be written"
        end(
            f"error: {this_process()} has made no step for {self._minutes:g} minutes (config.step_timeout); {stacks}; "
            f"{RESUMES}",
            INTERRUPTED,
        )


class PeerWatch:
    """Ends the process if another one of its job fails, or gives no sign of life.

    Every process puts a counter into the key-value store of the job, which lives in process 0, and watches those of
    all. That process 0 stands still shows by its silence.
    """

    def __init__(self) -> None:
        self._client: Any = distributed.global_state.client
        self._beats = ["0"] * processes()
        # Two threads: one of them may hang in a call.
        for target in (self._exchange, self._judge):
            threading.Thread(target=target, name="peer watch", daemon=True).start()

    def fail(self, reason: str, code: int) -> NoReturn:
        """Ends this process, which failed, and all others with the same exit code."""
        _within(2, lambda: self._client.key_value_set(f"lma/failed/{rank()}", f"{code} {reason}"))
        end(f"error: {reason} ({this_process()})", code)

    def lose(self, reason: str) -> NoReturn:
        """Ends this process, which lost a connection to another one; names those that are gone."""
        time.sleep(2 * BEAT)  # the last one of a process that is gone may still be on its way
        before = list(self._beats)
        time.sleep(3 * BEAT)
        gone = [number for number, beat in enumerate(before) if beat == self._beats[number]]
        self._end_without(gone, f"is gone ({reason})")

    def _exchange(self) -> None:
        where, count = f"pid {os.getpid()} on {socket.gethostname()}", 0
        while True:
            with contextlib.suppress(Exception):  # process 0 is gone or stands still, which the others notice
                count += 1
                self._client.key_value_set(f"lma/beat/{rank()}", f"{count} {where}", allow_overwrite=True)
                for number, value in self._read("lma/beat/"):
                    self._beats[number] = value
                for number, value in self._read("lma/failed/"):
                    code, _, reason = value.partition(" ")
                    if number != rank():
                        end(f"error: {this_process()} ends because process {number} failed: {reason}", int(code))
            time.sleep(BEAT)

    def _read(self, folder: str) -> list[tuple[int, str]]:
        return [(int(key.rpartition("/")[2]), value) for key, value in self._client.key_value_dir_get(folder)]

    def _judge(self) -> None:
        silence, before = [0.0] * processes(), list(self._beats)
        while True:
            time.sleep(BEAT)
            now = list(self._beats)
            silence = [
                0.0 if now[number] != before[number] else seconds + BEAT for number, seconds in enumerate(silence)
            ]
            before = now
            silent = [number for number, seconds in enumerate(silence) if seconds >= LOST_AFTER and now[number] != "0"]
            if silent:
                self._end_without(silent, f"gave no sign of life for {LOST_AFTER:.0f} seconds")

    def _end_without(self, ranks: list[int], what: str) -> NoReturn:
        if 0 in ranks and rank() != 0:
            ranks = [0]  # no counter arrives without it
        places = [f"process {number} ({self._beats[number].partition(' ')[2]})" for number in ranks[:5]]
        lost = " and ".join(places) or "another process"
        end(f"error: {this_process()} ends because {lost} {what}; {RESUMES}", INTERRUPTED)


@contextlib.contextmanager
def xla_defers_to(lost: Callable[[], NoReturn]) -> Iterator[None]:
    """Within the block, XLA's client of a job is made to call `lost` when it loses process 0, instead of aborting.

    JAX 0.10 has the callback but not a type to hand it its argument, so that calling it ends in `std::terminate`.
    """
    library = distributed._jax
    create = library.get_distributed_runtime_client
    library.get_distributed_runtime_client = functools.partial(create, missed_heartbeat_callback=lambda *_: lost())
    _on_bad_cast(lost)
    try:
        yield
    finally:
        library.get_distributed_runtime_client = create


_handler_type = ctypes.CFUNCTYPE(None)
_handlers: list[Any] = []  # C++ holds no reference


def _on_bad_cast(handle: Callable[[], NoReturn]) -> None:
    """Calls `handle` where a `std::bad_cast` that nobody catches would abort the process."""
    try:
        cpp = ctypes.CDLL("libstdc++.so.6")
        set_terminate, exception_type = cpp._ZSt13set_terminatePFvvE, cpp.__cxa_current_exception_type
    except (OSError, AttributeError):
        return  # another C++ library: XLA aborts as ever
    set_terminate.restype = exception_type.restype = ctypes.c_void_p

    def terminate() -> None:
        found = exception_type()
        # A type_info holds its table of functions, then its name.
        if found and ctypes.c_char_p.from_address(found + ctypes.sizeof(ctypes.c_void_p)).value == b"St8bad_cast":
            handle()
        _handler_type(previous)()

    _handlers.append(_handler_type(terminate))
    previous = set_terminate(_handlers[-1])


def rank() -> int:
    """The number of this process in its job; unlike JAX's, it starts no backend."""
    return distributed.global_state.process_id


def processes() -> int:
    """How many processes the job has."""
    return distributed.global_state.num_processes


def this_process() -> str:
    return f"process {rank()} of {processes()}"


def _within(seconds: float, call: Callable[[], None]) -> bool:
    """Whether a call succeeded in a time."""
    done: list[bool] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            call()
            done.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(done)
