"""A short version of the benchmarks, against the ratios in baseline.json. Fails where something became slower.

    python benchmarks/bench.py [--update]          or: make bench

Every figure is a ratio within one run, so that another machine, or other users of this one, change it little. It passes
if its upper quartile reaches three quarters of the baseline; the best of three attempts counts. --update writes the
measured medians to baseline.json instead.
"""

import json
import math
import sys
from pathlib import Path

from lma_jax import files
from measurements import guard, options

BASELINE = Path(__file__).parent / "baseline.json"


def update() -> None:
    """Writes the measured medians to the baseline."""
    medians = {name: round(values.median, 2) for part in guard.PARTS.values() for name, values in part().items()}
    files.write(BASELINE, json.dumps(medians, indent=1) + "\n")
    print(f"wrote {len(medians)} ratios to {BASELINE}")


def compare() -> None:
    """Prints every figure beside the baseline; exits with an error if one is slower, missing or new."""
    baseline = json.loads(BASELINE.read_text())
    slower: list[str] = []
    measured: set[str] = set()
    print(f"{'':68}{'baseline':>10}{'now':>8}   quartiles")
    for part in guard.PARTS.values():
        found = guard.best_of_attempts(part, baseline)
        slower += guard.slower(found, baseline)
        measured |= {*found}
        for name, (low, median, high) in found.items():
            base, mark = baseline.get(name, math.nan), "  slower" if name in slower else ""
            print(f"{name:68}{base:10.2f}{median:8.2f}   {low:.2f} to {high:.2f}{mark}", flush=True)
    if unpaired := sorted(measured ^ {*baseline}):
        sys.exit(f"error: only measured, or only in {BASELINE.name}: {'; '.join(unpaired)}; --update writes it anew")
    if slower:
        sys.exit(f"error: {len(slower)} of {len(baseline)} ratios fell below {guard.SLACK:.0%} of the baseline")
    print(f"all {len(baseline)} ratios reach {guard.SLACK:.0%} of the baseline")


def main() -> None:
    parser = options.plain_parser(__doc__)
    parser.add_argument("--update", action="store_true", help="write the medians to baseline.json")
    if parser.parse_args().update:
        update()
    else:
        compare()


if __name__ == "__main__":
    main()
