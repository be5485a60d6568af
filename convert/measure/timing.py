"""Timing of variants that take turns.

Timings on a shared machine drift, so variants are interleaved in random order and ratios are taken within a round.
Each timed call follows an untimed one of the same variant, so that no timed call compiles anything.
"""

import ctypes
import random
import textwrap
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

# What a variant is called by: any hashable value with a readable str().
V = TypeVar("V", bound=Hashable)
# Runs a variant once and returns when the result is there.
Run = Callable[[], object]


@dataclass
class Timing(Generic[V]):
    """What was measured of a variant.

    Attributes:
        variant: what was run.
        first_call: seconds of the first call, which compiles.
        seconds: duration of the timed call of each round.
        error: why it could not be run, in one line; None if it could.
    """

    variant: V
    first_call: float | None = None
    seconds: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def latency(self) -> dict[str, float]:
        """Percentiles of the duration in seconds."""
        return {f"p{rank}": float(np.percentile(self.seconds, rank)) for rank in (50, 90, 99)}


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile."""

    lower: float
    median: float
    upper: float


def quartiles(values: Any) -> Quartiles:
    """The quartiles of some numbers."""
    return Quartiles(*map(float, np.percentile(values, (25, 50, 75))))


def speedup(timing: Timing[Any], baseline: Timing[Any]) -> Quartiles:
    """Quartiles, over the rounds, of how many times as fast as `baseline` a variant is."""
    return quartiles(np.array(baseline.seconds) / np.array(timing.seconds))


def measure(
    variants: Mapping[V, Callable[[], Run]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], object] = print,
) -> list[Timing[V]]:
    """Times variants in turns. One that fails is reported, and the others continue.

    As a side effect, the process keeps the memory that it frees.

    Args:
        variants: for each, a function that builds it and returns its `Run`.
        rounds: number of timed calls of each.
        clock: returns the time in seconds.
        say: called with one line about each variant once it is built.
    """
    _keep_freed_memory()
    timings = {variant: Timing(variant) for variant in variants}
    runs: dict[V, Run] = {}

    def attempt(variant: V, action: Callable[[V], None]) -> None:
        try:
            action(variant)
        # Out of memory, a dtype without kernels, no C++ compiler: each framework has its own errors for them.
        except Exception as error:
            runs.pop(variant, None)
            timings[variant].error = _one_line(error)
            say(f"{variant}: unavailable, {timings[variant].error}")

    def first(variant: V) -> None:
        run = variants[variant]()
        timings[variant].first_call = seconds = _seconds(run, clock)
        runs[variant] = run
        say(f"{variant}: first call {seconds:.1f} s")

    def turn(variant: V) -> None:
        runs[variant]()
        timings[variant].seconds.append(_seconds(runs[variant], clock))

    for variant in variants:
        attempt(variant, first)
    shuffler = random.Random(0)
    for _ in range(rounds):
        for variant in shuffler.sample(list(runs), len(runs)):
            attempt(variant, turn)
    return list(timings.values())


def _seconds(run: Run, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return textwrap.shorten(f"{type(error).__name__}: {words}", 140, placeholder=" ...")


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory, as allocators for networks do.

    Otherwise the kernel clears the pages of large arrays again in each call, and one more feature map in a network may
    cost more than the layer that computes it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
