"""The training step of LMA networks against their plain backbones, in JAX and in PyTorch.

    python benchmarks/train_step.py [--model resnet50_lma] [--batch_size 8] [--image_size 224] [--dtype float32]
        [--modes jax,jax_remat,torch,torch_compile] [--steps 10] [--device cpu] [--json train_step.json]

Prints images/s, their ratios, and for JAX the memory and the time on the host. The step is the trainer's own (on GPUs,
as with --nodeterministic): uint8 images, normalised on the device, cross-entropy, SGD with momentum and weight decay.
PyTorch's does the same, in channels_last and with autocast in bfloat16. The variants take turns, in an order drawn
anew each round, and ratios are taken within a round. Needs only jax, flax, optax, torch, numpy and absl.
"""

import argparse
import sys

import torch

from measurements import options, results, train_step


def parse() -> argparse.Namespace:
    """The options, with lists of valid names as --model and --modes."""
    parser = options.parser(
        __doc__, model="resnet50_lma", batch_size=8, image_size=224, dtype="float32", steps=10, device="cpu"
    )
    parser.add_argument("--modes", default="jax,torch", help=f"some of {','.join(train_step.MODES)}")
    chosen = parser.parse_args()
    chosen.model, chosen.modes = chosen.model.split(","), chosen.modes.split(",")
    if problem := train_step.problem_in(chosen.model, chosen.modes):
        sys.exit(f"error: {problem}")
    return chosen


def main() -> None:
    chosen = parse()
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 1 << 10
    setting = train_step.Setting(chosen.batch_size, chosen.image_size, chosen.dtype, chosen.device)
    found = train_step.compare(chosen.model, chosen.modes, setting, steps=chosen.steps, say=print)
    for name, row in found.steps.items():
        print(f"{name:28}{row['images_per_second']:10.1f} images/s", end="")
        if "host_ms" in row:
            planned, kept = row["temporary"] / 2**20, row["kept"] / 2**20
            print(f"{planned:10,.0f} MiB planned{kept:10,.0f} MiB kept{row['host_ms']:8.2f} ms on the host", end="")
        print()
    for ratio in found.ratios:
        low, median, high = ratio["quartiles"]
        print(f"{ratio['of']:28}{ratio['shows']:>40}  {median:.3f} ({low:.3f} to {high:.3f})")
    results.write_json(chosen, steps=found.steps, ratios=found.ratios)
    results.exit_on(found.failed)


if __name__ == "__main__":
    main()
