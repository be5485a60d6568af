"""ResNet-50 and MobileNetV2 of this project against timm, Keras and Flax's ImageNet example: inference and training.

    python benchmarks/peers.py [--model resnet50,mobilenetv2] [--batch_size 8] [--image_size 224] [--steps 10]
        [--tasks inference,training] [--variants jax,torch,torch_compile,timm,timm_compile,keras,flax]
        [--json peers.json]

Prints images/s on the CPU in float32, and the ratio of each library to this project's plain backbone in the same
framework: median and quartiles over the rounds. The variants of a network and task take turns, in an order drawn anew
each round, and ratios are taken within a round. PyTorch runs in channels_last; JAX is jitted. The training step is that
of `train_step.py` for all: uint8 images normalised on the device, cross-entropy, SGD with momentum and weight decay.
Keras' ResNet-50 is the first form, with the stride in the 1x1 convolutions and 6 % fewer products.

Variants of packages that are missing are left out. For all of them:

    pip install -e . jax==0.10.2 flax==0.12.8 optax==0.2.8 absl-py torch==2.14.1 torchvision==0.29.1 timm keras
"""

import argparse

import torch

from convert import flag_values
from convert.measure.fps import heading
from convert.measure.runs import choose_device
from lma_jax.errors import UserError
from measurements import options, peers, results, train_step


def parse() -> argparse.Namespace:
    """The options, with lists of valid names as --model, --tasks and --variants; a bad one exits with code 2."""
    allowed = {"model": peers.MODELS, "tasks": peers.TASKS, "variants": peers.PEERS}
    every = {name: ",".join(values) for name, values in allowed.items()}
    parser = options.parser(__doc__, model=every["model"], batch_size=8, image_size=224, steps=10)
    for name in ("tasks", "variants"):
        parser.add_argument(f"--{name}", default=every[name], help="some of %(default)s, which is the default")
    chosen = parser.parse_args()
    try:
        for name, values in allowed.items():
            setattr(chosen, name, flag_values.choose(name, getattr(chosen, name).split(","), values))
        missing = peers.left_out(chosen.variants)
        print(*missing.values(), sep="\n", end="\n" if missing else "")
        chosen.variants = [variant for variant in chosen.variants if variant not in missing]
        if not chosen.variants:
            raise UserError("no variant is left to measure")
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    return chosen


def main() -> None:
    chosen = parse()
    torch._dynamo.config.recompile_limit = 1 << 10
    setting = train_step.Setting(chosen.batch_size, chosen.image_size)
    found = peers.compare(chosen.model, chosen.tasks, chosen.variants, setting, steps=chosen.steps, say=print)
    versions = peers.versions(chosen.variants)
    title = heading(choose_device("cpu", ())[1], chosen.image_size, chosen.steps)
    others = "".join(f", {package} {version}" for package, version in versions.items())
    print(f"\n{title}, batch {chosen.batch_size}{others}\n\n{peers.table(found.rows)}")
    results.write_json(chosen, versions=versions, rows=found.rows)
    results.exit_on(found.failed)


if __name__ == "__main__":
    main()
