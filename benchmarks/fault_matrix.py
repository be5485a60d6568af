"""Lets training runs meet faults at random moments and checks that each, started again, ends bit-identical.

    python benchmarks/fault_matrix.py [--runs 3] [--faults kill full-disk] [--processes 1] [--seed 0]

The runs are of one process and of two, save between evaluations, and some decode in worker processes. The faults are
signals (kill, term, hup, interrupt; stop is SIGSTOP and SIGCONT), a full disk, a closed output, a killed data worker,
and a second run on the same workdir. A fault may fall into start-up, reading, a training step, an evaluation or a save.
Exits with 1 if a run differs from the undisturbed one, prints a traceback, ends with another code than it should, or
leaves a process, a temporary file or a checkpoint too many behind. A run takes half a gigabyte of disk for its time;
those that failed stay.
"""

import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from measurements import fault_matrix, options


def main() -> None:
    parser = options.plain_parser(__doc__)
    parser.add_argument("--runs", type=options.count, default=3, help="runs of each fault and number of processes")
    parser.add_argument("--faults", nargs="+", choices=fault_matrix.FAULTS, default=[*fault_matrix.FAULTS])
    parser.add_argument("--processes", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--seed", type=int, default=random.randrange(1000), help="of the moments")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    for ignored in (signal.SIGHUP, signal.SIGINT):  # by nohup or a shell, which the runs would inherit
        signal.signal(ignored, signal.SIG_DFL)
    root = Path(tempfile.mkdtemp(prefix="fault-matrix-"))
    reference = root / "reference"
    fault_matrix.finish(root / "warm-up", processes=1)  # compiles
    fault_matrix.finish(reference, processes=1)
    failed = []
    for processes in chosen.processes:
        seconds = fault_matrix.finish(root / f"undisturbed-{processes}", processes=processes)
        for fault in chosen.faults:
            for number in range(chosen.runs):
                rng = random.Random(f"{chosen.seed} {processes} {fault} {number}")
                workdir = root / f"{fault}-{processes}-{number}"
                how, problems = fault_matrix.disturb(fault, workdir, processes=processes, seconds=seconds, rng=rng)
                lacks = fault == "full-disk"
                problems += fault_matrix.differences(workdir, reference, rows_may_lack=lacks)
                print(f"{processes} process(es), {how}: {problems[:3] or 'identical'}", flush=True)
                failed.append(bool(problems))
                if not problems:
                    shutil.rmtree(workdir)
    print(f"{sum(failed)} of {len(failed)} failed{f'; see {root}' if any(failed) else ''}")
    if not any(failed):
        shutil.rmtree(root)
    sys.exit(any(failed))


if __name__ == "__main__":
    main()
