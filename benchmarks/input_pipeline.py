"""What reading images costs: processor time per image against a plain decode of the same file, and its scaling.

    python benchmarks/input_pipeline.py [--images 192] [--folder <folder of JPEGs>] [--json input_pipeline.json]

Without --folder it draws JPEGs of ImageNet's typical size (500 x 375 pixels, about 110 KB). Each figure is a ratio of
processor times that are taken in turns within one process.
"""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np

from lma_jax.files import write
from measurements import input_pipeline, options
from measurements.input_pipeline import GPU_RATES, GPUS


def print_pixels_and_costs(figures: dict[str, Any]) -> None:
    for name, found in figures["distances"].items():
        shares = (
            f"{100 * found['differ']:.3f} % of the values differ, {100 * found['by more than 1']:.5f} % by more than 1"
        )
        print(f"{name} pixels against Pillow's: mean {found['mean']:.4f}, largest {found['largest']} levels; {shares}")
    for name, cost in figures["costs"].items():
        print(f"{name:36} {cost['ms']:6.3f} ms of CPU per image, {cost['x decode']:5.2f} x decode")


def print_scaling(figures: dict[str, Any]) -> None:
    print("\nthreads  worker processes  images/s  cores in use  ms of CPU per image  of which in the parent")
    for row in figures["scaling"]:
        print("{:7}  {:16}  {:8.0f}  {:12.2f}  {:19.3f}  {:22.3f}".format(*row.values()))
    print(f"\ncores to feed {GPUS} GPUs = {GPUS} x images/s per GPU / images/s per core (this machine's cores)")
    for name, cores in figures["cores"].items():
        needs = ", ".join(f"{cores[f'{rate} images/s']:.0f} at {rate}" for rate in GPU_RATES)
        print(f"{name:16} {cores['a core']:5.0f} images/s per core: {needs} images/s per GPU")


def main() -> None:
    parser, fewest = options.parser(__doc__, holds=['"nvImageCodec": ']), input_pipeline.BATCH_SIZE
    parser.add_argument("--images", type=options.count, default=192, help=f"{fewest} or more (default: 192)")
    parser.add_argument("--folder", type=Path, help="JPEGs to use instead of drawn ones")
    chosen = parser.parse_args()
    draw, read = input_pipeline.draw_jpegs, input_pipeline.read_jpegs
    files = read(chosen.folder, chosen.images) if chosen.folder else draw(chosen.images)
    if len(files) < fewest:
        parser.error(f"a batch of the loader takes {fewest} JPEGs, got {len(files)}")
    size, fast = float(np.mean([len(file) for file in files]) / 1e3), input_pipeline.decodes_crops(files[0])
    print(f"{len(files)} files of {size:.0f} KB; nvImageCodec is {'' if fast else 'not '}installed")
    figures: dict[str, Any] = {"files": len(files), "KB": size, "nvImageCodec": fast}
    figures["distances"] = input_pipeline.distances(files)
    figures["costs"] = input_pipeline.costs(files)
    print_pixels_and_costs(figures)
    figures["scaling"] = input_pipeline.scaling(files)
    figures["cores"] = input_pipeline.cores_needed(figures["scaling"])
    print_scaling(figures)
    figures["memory"] = input_pipeline.loader_memory(files, **input_pipeline.MEMORY)
    print(
        "\na loader of {threads} threads takes {MB:,.0f} MB; a batch has {MB of a batch:,.0f} MB".format(
            **figures["memory"]
        )
    )
    figures["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory {figures['peak MB']:,.0f} MB")
    if chosen.json:
        write(chosen.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
