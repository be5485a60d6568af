"""Seconds from the command to the first finished training step, with an empty and with a filled compilation cache.

    python benchmarks/startup.py [--model resnet50_lma] [--pairs 2] [--json startup.json]

Runs the trainer's command on the embedded digits, with 8 images of 64 x 64 per step. A cold and a warm start take
turns; each pair has its own cache.
"""

import numpy as np

from measurements import options, results, startup


def main() -> None:
    parser = options.parser(__doc__, model="resnet50_lma")
    parser.add_argument("--pairs", type=options.count, default=2, help="cold and warm starts (default: 2)")
    chosen = parser.parse_args()
    seconds = []
    for _ in range(chosen.pairs):
        cold, warm = startup.cold_and_warm(chosen.model)
        seconds.append((cold, warm))
        print(f"{chosen.model}: cold {cold:.1f} s, warm {warm:.1f} s, {warm / cold:.2f} of cold", flush=True)
    results.write_json(chosen, seconds=seconds, ratio=float(np.median([warm / cold for cold, warm in seconds])))


if __name__ == "__main__":
    main()
