"""Verifies that the two frameworks compute the same network, layer by layer.

python -m convert.verify --model resnet50_lma                               random weights
python -m convert.verify --checkpoint runs/r50 --weights r50.safetensors    a checkpoint against its export
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from absl import flags

from lma_jax import cli, files
from lma_jax.errors import UserError
from lma_jax.overwriting import Kind, require_outputs

DIFFERENCES = Kind(holds=('"layer": ', '"absolute": ', '"relative": ', '"tolerance": ', '"passed": '))


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Network to verify with random weights, one of list_models().")
    flags.DEFINE_string("checkpoint", None, "Workdir of a training run, to verify against --weights.")
    cli.define_step()
    cli.define_import()
    flags.DEFINE_string("weights", None, "Export of the checkpoint, .safetensors or .pth.")
    flags.DEFINE_integer("images", 4, "Number of random images.", lower_bound=1)
    flags.DEFINE_string("image_folder", None, "Folder of images to use instead of random ones.")
    flags.DEFINE_bool("by_layer", False, "Print every layer, not only the worst layer and the logits.")
    flags.DEFINE_string("json", None, "File for the differences of all layers.")
    cli.define_force()


def main() -> None:
    options = flags.FLAGS
    random = bool(options.model)
    if random == bool(options.checkpoint) or random == bool(options.weights):
        raise UserError("give either --model, or --checkpoint and --weights")
    from convert.pair import exported_pair, images_for, random_pair
    from convert.parity import verify
    from lma_jax.checkpoint.format import load_checkpoint

    require_outputs({"json": (options.json, DIFFERENCES)}, inputs=_inputs(), force=options.force)
    if random:
        pair = random_pair(options.model)
    else:
        pair = exported_pair(load_checkpoint(options.checkpoint, options.step), Path(options.weights))
    images = images_for(pair.preprocessing, count=options.images, folder=options.image_folder)
    verification = verify(pair.jax_model, pair.torch_model, images)
    print(f"JAX against PyTorch on {len(images)} images, {images.shape[1]} x {images.shape[2]}")
    print("\n".join(verification.report(by_layer=options.by_layer)))
    if options.json:
        rows = [{**asdict(row), "passed": row.passed} for row in verification.differences]
        files.write(options.json, json.dumps(rows, indent=1))
    if not verification.passed:
        print("error: the two frameworks do not compute the same", file=sys.stderr)
        sys.exit(1)


def _inputs() -> list[str | Path]:
    """The files and folders that are read."""
    options = flags.FLAGS
    inputs: list[str | Path] = [Path(options.checkpoint, "checkpoints"), options.weights] if options.checkpoint else []
    if options.image_folder:
        from lma_jax.images import image_files

        inputs += image_files(options.image_folder)
    return inputs


if __name__ == "__main__":
    cli.run(main, define_flags)
