"""Predicts training on many GPUs from measured and assumed parts, and checks the prediction where one machine can.

    python benchmarks/scaling.py [--gpus 8 64 512] [--batch_per_gpu 64 ...] [--json scaling.json]
    python benchmarks/scaling.py --check [--model resnet50_lma] [--batch_norm local] [--devices 2 4 8]
    python benchmarks/scaling.py --loopback [--model resnet50_lma]

The first form prints the tables of docs/scaling.md; every assumption is an option. --check compiles the trainer's step
for 2, 4 and 8 fake devices and compares its collectives with the prediction, to the byte; it exits with 1 on a
difference. --loopback times the all-reduce of a network's gradients and statistics between two processes on this
machine, and needs Linux.
"""

import argparse
import json
import sys
from dataclasses import asdict, fields

from measurements import options
from measurements.prediction import Assumptions, predict
from measurements.prediction_tables import assumption_table, prediction_table, saturation_table


def make_parser() -> argparse.ArgumentParser:
    """The options; each assumption is one."""
    parser = options.parser(__doc__, model="resnet50_lma", holds=['"assumptions": {', '"predictions": ['])
    parser.add_argument("--gpus", type=options.count, nargs="+", default=[8, 64, 512], help="sizes of the job")
    parser.add_argument("--check", action="store_true", help="compare with the collectives of the compiled step")
    parser.add_argument("--loopback", action="store_true", help="time the all-reduce of two processes")
    parser.add_argument("--batch_norm", default="local", choices=("local", "sync"), help="of --check")
    parser.add_argument("--devices", type=options.count, nargs="+", default=[2, 4, 8], help="of --check")
    for item in fields(Assumptions):
        kind = dict(action="store_true") if item.type is bool else dict(type=item.type)
        parser.add_argument(f"--{item.name}", default=item.default, help=item.metadata["meaning"], **kind)
    return parser


def print_prediction(chosen: argparse.Namespace) -> None:
    """Prints the tables, and writes assumptions and predictions to --json.

    Raises:
        ValueError: an assumption is out of range.
    """
    assumptions = Assumptions(**{item.name: getattr(chosen, item.name) for item in fields(Assumptions)})
    predictions = [predict(assumptions, gpus) for gpus in chosen.gpus]
    print(assumption_table(assumptions), prediction_table(assumptions, predictions), sep="\n\n")
    print(f"\n{saturation_table(assumptions)}")
    if chosen.json:
        content = {"assumptions": asdict(assumptions), "predictions": [asdict(p) for p in predictions]}
        from lma_jax import files  # here, since a prediction alone needs no package

        files.write(chosen.json, json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = make_parser()
    chosen = parser.parse_args()
    if min(chosen.devices) < 2:
        parser.error("--devices starts at 2: one device has no collectives")
    if chosen.check or chosen.loopback:  # only these need JAX
        from lma_jax.registry import problem_with

        if problem := problem_with(chosen.model):
            parser.error(problem)
    if chosen.check:
        from measurements import collectives

        collectives.use_fake_devices(max(chosen.devices))
        sys.exit(not collectives.verify(chosen.model, chosen.batch_norm, chosen.devices))
    elif chosen.loopback:
        from measurements import loopback

        loopback.report(chosen.model)
    else:
        try:
            print_prediction(chosen)
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
