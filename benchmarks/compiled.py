"""What XLA makes of the networks for GPUs and TPUs that are not there: bytes, kernels, memory, collectives, a roofline.

    python benchmarks/compiled.py [--target h100] [--model resnet50_lma] [--program inference] [--devices 1]
        [--batch_size 128] [--image_size 224] [--dtype bfloat16] [--flags name=value,...] [--top 0] [--json file]

--target, --model, --program and --devices take lists by commas. Targets are h100, a100 and v5e, any GPU that a file
describes (measurements/targets/*.textproto), and any TPU topology that JAX knows, such as v5p:2x2x1. The plain backbone
of each model is compiled too. Batches are per device. Needs only jax, flax, optax and numpy, and XLA's compiler for the
target, but no such device; benchmarks/README.md says how to install it.
"""

import argparse
import json
import sys
from functools import partial

from measurements import accelerators, options


def parse() -> argparse.Namespace:
    """The options; --target, --model and --program become lists."""
    parser = options.parser(__doc__, model="resnet50_lma", batch_size=128, image_size=224, dtype="bfloat16")
    devices = partial(options.counts, most=accelerators.MOST_DEVICES)
    parser.add_argument("--target", default="h100", help="accelerators (default: h100)")
    parser.add_argument("--program", default="inference", help="inference, folded, training, rematerialised")
    parser.add_argument("--devices", type=devices, default=[1], help="numbers of devices, 1 to 8 (default: 1)")
    parser.add_argument("--flags", type=options.assignments, default={}, help="compiler options, name=value,...")
    parser.add_argument("--top", type=options.number, default=0, help="how many of the largest kernels to list")
    chosen = parser.parse_args()
    for name in ("target", "model", "program"):
        setattr(chosen, name, getattr(chosen, name).split(","))
    return chosen


def run(chosen: argparse.Namespace) -> list[str]:
    """Compiles all programs, prints the tables and writes --json; returns a line for each program that XLA refuses.

    Raises:
        UserError: a name is unknown, or a compiler is not installed.
    """
    targets = [accelerators.find(name) for name in chosen.target]
    from lma_jax import files  # these import JAX
    from measurements import compiled, compiled_tables

    compiled.require(chosen.model, chosen.program)
    for target in targets:
        accelerators.require_compiler(target)
    setting = compiled.Setting(chosen.batch_size, chosen.image_size, chosen.dtype, chosen.flags)
    found, failed = compiled.compile_all(targets, chosen.model, chosen.program, chosen.devices, setting, say=say)
    print(compiled_tables.report(found, setting, top=chosen.top))
    if chosen.json:
        settings = {**vars(chosen), "json": None, **compiled.versions()}
        content = {"settings": settings, "programs": compiled_tables.as_json(found, top=chosen.top)}
        files.write(chosen.json, json.dumps(content, indent=1) + "\n")
    return failed


def say(line: str) -> None:
    """Reports progress, beside the tables on stdout."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    accelerators.set_environment()  # before JAX is imported
    chosen = parse()
    from lma_jax.errors import UserError

    try:
        failed = run(chosen)
    except UserError as error:
        failed = [str(error)]
    for problem in failed:
        say(f"error: {problem}")
    sys.exit(2 if failed else 0)


if __name__ == "__main__":
    main()
