"""A short version of the benchmarks, against the committed ratios: fails where something became slower.

    python benchmarks/bench.py [--update]          or: make bench

Every figure is a ratio within one run, so that another machine, or other users of this one, move it little. It passes
if its upper quartile reaches SLACK of the median in baseline.json; the best of ATTEMPTS counts. --update writes the
measured medians there instead.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import common
import lma_layer
import train_step

BASELINE = Path(__file__).parent / "baseline.json"
SLACK = 0.75
ATTEMPTS = 3

Quartiles = list[float]


def layer(channels: int, side: int, with_backward: bool) -> dict[str, Quartiles]:
    """The layer's speed over that of its textbook form."""
    found = lma_layer.speedups(channels, side, with_backward, lma_layer.arguments().parse_args(["--rounds", "8"]))
    kind = "forward and backward" if with_backward else "forward"
    return {f"LMA {channels} x {side} {kind}: {name}": quartiles for name, quartiles in found.items()}


def training() -> dict[str, Quartiles]:
    """Speed of a training step with LMA over that without."""
    command = "--model resnet18_lma --batch 4 --image_size 64 --rounds 8 --modes jax,torch"
    _, ratios, failed = train_step.compare(train_step.arguments().parse_args(command.split()), say=lambda _: None)
    common.require(failed)
    return {
        f"training step: {ratio['of']} / {ratio['over']}": ratio["quartiles"]
        for ratio in ratios
        if ratio["shows"] == train_step.LMA_OVER_PLAIN
    }


def input_path() -> dict[str, Quartiles]:
    """Images a second of processor time of the loader over those of a plain JPEG decode."""
    import input_pipeline

    return {"input path: loader / plain decode": input_pipeline.loader_over_decode(images=64, repeats=5)}


PARTS: dict[str, Callable[[], dict[str, Quartiles]]] = {
    "input path": input_path,  # first: the others have the process keep freed memory, which the trainer does not
    "layer, forward": lambda: {**layer(256, 56, False), **layer(960, 7, False)},
    "layer, forward and backward": lambda: {**layer(256, 56, True), **layer(960, 7, True)},
    "training step": training,
}


def slower(found: dict[str, Quartiles], baseline: dict[str, float]) -> list[str]:
    """The figures that fell below the baseline by more than noise."""
    return [name for name, (_, _, upper) in found.items() if upper < SLACK * baseline.get(name, 0)]


def guarded(part: Callable[[], dict[str, Quartiles]], baseline: dict[str, float]) -> dict[str, Quartiles]:
    """A part's figures, measured again where they are too low: a disturbed run passes the next time."""
    best: dict[str, Quartiles] = {}
    for _ in range(ATTEMPTS):
        for name, quartiles in part().items():
            best[name] = max(best.get(name, quartiles), quartiles, key=lambda values: values[2])
        if not slower(best, baseline):
            break
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the medians to baseline.json")
    options = parser.parse_args()
    if options.update:
        medians = {name: round(values[1], 2) for part in PARTS.values() for name, values in part().items()}
        BASELINE.write_text(json.dumps(medians, indent=1) + "\n")
        print(f"wrote {len(medians)} ratios to {BASELINE}")
        return
    baseline = json.loads(BASELINE.read_text())
    failed: list[str] = []
    unpaired = {*baseline}
    print(f"{'':68}{'baseline':>10}{'now':>8}   quartiles")
    for part in PARTS.values():
        found = guarded(part, baseline)
        failed += slower(found, baseline)
        unpaired ^= {*found}
        for name, (low, median, high) in found.items():
            base, mark = baseline.get(name, math.nan), "  slower" if name in failed else ""
            print(f"{name:68}{base:10.2f}{median:8.2f}   {low:.2f} to {high:.2f}{mark}", flush=True)
    if unpaired:
        sys.exit(f"error: only measured, or only in {BASELINE.name}: {'; '.join(sorted(unpaired))}; see --update")
    if failed:
        sys.exit(f"error: {len(failed)} of {len(baseline)} ratios fell below {SLACK:.0%} of the baseline")
    print(f"all {len(baseline)} ratios reach {SLACK:.0%} of the baseline")


if __name__ == "__main__":
    main()
