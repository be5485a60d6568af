"""Images per second and latency of networks: ratios between variants, and the results as a table and as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from convert.measure.runs import Variant
from convert.measure.timing import Timing, speedup


@dataclass(frozen=True)
class Ratio:
    """Images/s of one variant over another's: median and quartiles over the rounds."""

    variant: Variant
    over: Variant
    median: float
    lower: float
    upper: float

    @property
    def title(self) -> str:
        """The two that are compared, and what they have in common."""
        a, b = self.variant, self.over
        if a.model != b.model:
            return f"{a.model} / {b.model}, {a.framework} {a.mode}, {a.dtype}, batch {a.batch_size}"
        return f"{a.framework} {a.mode} / {b.framework} {b.mode}, {a.model}, {a.dtype}, batch {a.batch_size}"


def images_per_second(timing: Timing[Variant]) -> float:
    """Images per second at the median latency."""
    return timing.variant.batch_size / float(np.median(timing.seconds))


def ratios(timings: Iterable[Timing[Variant]], baselines: Mapping[str, str]) -> list[Ratio]:
    """Each network over its baseline, run in the same way, then JAX over each mode of PyTorch.

    Args:
        timings: what was measured.
        baselines: by the name of a network, that of the one to compare it with.
    """
    done = {timing.variant: timing for timing in timings if timing.error is None}
    pairs = [
        (a, b) for a in done for b in done if a.model in baselines and b == replace(a, model=baselines[a.model]) != a
    ]
    pairs += [
        (a, b)
        for a in done
        for b in done
        if (a.framework, b.framework) == ("jax", "torch") and b == replace(a, framework="torch", mode=b.mode)
    ]
    return [Ratio(a, b, **speedup(done[a], done[b])._asdict()) for a, b in pairs]


def row(timing: Timing[Variant]) -> dict[str, Any]:
    """A timing for JSON."""
    values = {**asdict(timing.variant), "first_call": timing.first_call, "error": timing.error}
    if timing.error is None:
        values |= {"images_per_second": images_per_second(timing), **timing.latency, "seconds": timing.seconds}
    return values


def to_json(timings: Iterable[Timing[Variant]], found: Iterable[Ratio], *, device: str, image_size: int) -> str:
    """All results, with the name of the device, the versions and the size of the images in pixels."""
    import jax
    import torch

    settings = dict(device=device, jax=jax.__version__, torch=torch.__version__, image_size=image_size)
    results = dict(variants=[row(timing) for timing in timings], ratios=[asdict(ratio) for ratio in found])
    return json.dumps({**settings, **results}, indent=1) + "\n"


def heading(device: str, image_size: int, rounds: int) -> str:
    """What was measured where, in one line."""
    import jax
    import torch

    versions = f"JAX {jax.__version__}, PyTorch {torch.__version__}"
    return f"{device}; {versions}; {image_size} x {image_size} pixels, {rounds} rounds"


def table(timings: Sequence[Timing[Variant]], found: Sequence[Ratio]) -> str:
    """Timings and ratios as the command prints them."""
    width = max(len(str(timing.variant)) for timing in timings)
    lines = [f"{'':{width}}  first call s  images/s   p50 ms   p90 ms   p99 ms"]
    for timing in timings:
        name = f"{timing.variant!s:{width}}"
        if timing.error is None:
            latency = "".join(f"{1e3 * seconds:9.2f}" for seconds in timing.latency.values())
            lines += [f"{name}  {timing.first_call:12.1f}  {images_per_second(timing):8.1f}{latency}"]
        else:
            lines += [f"{name}  unavailable"]
    if found:
        width = max(len(ratio.title) for ratio in found)
        lines += ["", f"{'ratio of images/s':{width}}  median  quartiles"]
    lines += [f"{ratio.title:{width}}  {ratio.median:6.3f}  {ratio.lower:.3f} to {ratio.upper:.3f}" for ratio in found]
    return "\n".join(lines)
