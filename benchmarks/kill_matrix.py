"""Kills training runs with SIGKILL at random moments and checks that each, started again, ends bit-identical.

    python benchmarks/kill_matrix.py [--kills 5] [--kinds workers] [--seed 0]

There are three kinds of runs: one process that decodes in threads, one with two worker processes, and a job of two
processes. A kill may fall into start-up, reading, a training step, an evaluation or a save. Exits with 1 if a run
differs from the undisturbed one or leaves a process behind.
"""

import random
import sys
import tempfile
from pathlib import Path

from measurements import kill_matrix, options


def disturbed_run(kind: str, workdir: Path, reference: Path, seconds: float, rng: random.Random) -> bool:
    """Kills a run once or twice within its usual `seconds`, finishes it and prints whether it equals the reference."""
    kills = [
        kill_matrix.kill(kind, workdir, rng.uniform(0.1, 1.0) * seconds, rng) for _ in range(rng.choice((1, 1, 2)))
    ]
    kill_matrix.finish(kind, workdir)
    left = kill_matrix.orphans([session for _, sessions in kills for session in sessions])
    found = kill_matrix.differences(workdir, reference)
    verdict = f"DIFFERS in {found[:3]}, orphans {left}" if left or found else "identical"
    print(f"{kind:14} killed at {' and '.join(moment for moment, _ in kills):32} {verdict}", flush=True)
    return not (left or found)


def main() -> None:
    parser = options.plain_parser(__doc__)
    parser.add_argument("--kills", type=options.count, default=5, help="killed runs of each kind (default: 5)")
    parser.add_argument("--kinds", nargs="+", choices=kill_matrix.KINDS, default=[*kill_matrix.KINDS])
    parser.add_argument("--seed", type=int, help="of the moments")
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    root = Path(tempfile.mkdtemp(prefix="kill-matrix-"))
    kill_matrix.finish("threads", root / "warm-up")  # compiles
    reference = root / "reference"
    kill_matrix.finish("threads", reference)
    identical = []
    for kind in chosen.kinds:
        name = kind.replace(" ", "-")
        seconds = kill_matrix.finish(kind, root / f"{name}-undisturbed")
        for number in range(chosen.kills):
            identical.append(disturbed_run(kind, root / f"{name}-{number}", reference, seconds, rng))
    print(f"{identical.count(False)} of {len(identical)} differ")
    sys.exit(not all(identical))


if __name__ == "__main__":
    main()
