"""Images per second and latency of the networks, in both frameworks, on random images.

python -m convert.fps --model resnet50_lma --framework both --batch_size 1,32 --dtype float32,bfloat16
python -m convert.fps --model "resnet50*" --json fps.json --plot fps.png     every module against the plain backbone

Variants take turns, one batch each in random order, since timings drift on shared machines; ratios are taken within a
round. No timed batch compiles. float32 means each framework's default precision (TF32 on recent GPUs).
"""

import itertools
import os
from functools import partial
from pathlib import Path

from absl import flags

from convert import flag_values
from convert.measure.runs import DTYPES, MODES, Variant, build, choose_device
from lma_jax import cli, files
from lma_jax.errors import UserError
from lma_jax.overwriting import Kind, require_outputs

RESULTS = Kind(holds=('"image_size": ', '"variants": ['))


def define_flags() -> None:
    flags.DEFINE_string("model", "resnet50_lma", 'Network, or a pattern of list_models() such as "resnet50*".')
    flags.DEFINE_string("compare", None, "Network to compare with, by default the plain backbone; none if empty.")
    flags.DEFINE_enum("framework", "both", ["both", "jax", "torch"], "Framework to run.")
    flags.DEFINE_list("modes", list(MODES["torch"]), "Modes of PyTorch.")
    flags.DEFINE_list("batch_size", ["32"], "Images per batch; several sizes are measured together.")
    flags.DEFINE_list("dtype", ["float32"], f"Any of {', '.join(DTYPES)}.")
    flags.DEFINE_integer("image_size", 224, "Height and width of the images in pixels.", lower_bound=1)
    flags.DEFINE_integer("steps", 30, "Timed batches of each variant.", lower_bound=1)
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Device; auto is a GPU if all frameworks can use it.")
    flags.DEFINE_string("json", None, "File for all results.")
    flags.DEFINE_string("plot", None, "File for a plot: .png, .pdf or .svg.")
    cli.define_force()
    cli.define_import()


def main() -> None:
    # Both frameworks share a GPU. JAX reads this at its first use of one.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import torch

    from convert.measure.fps import heading, ratios, table, to_json
    from convert.measure.plots import PLOT, draw_fps, require_plot
    from convert.measure.timing import measure
    from lma_jax.registry import list_models, parts_of

    options = flags.FLAGS
    models = cli.models_named(options.model)
    baselines = {name: parts_of(name)[0] if options.compare is None else options.compare for name in models}
    compared = [*models, *baselines.values()] if options.compare != "" else models
    names = flag_values.choose("compare", compared, list_models())
    dtypes, sizes = (
        flag_values.choose("dtype", options.dtype, DTYPES),
        flag_values.positive("batch_size", options.batch_size),
    )
    modes = {"jax": MODES["jax"], "torch": flag_values.choose("modes", options.modes, MODES["torch"])}
    frameworks = flag_values.frameworks_of(options.framework)
    require_plot(options.plot)
    written = {"json": (options.json, RESULTS), "plot": (options.plot, PLOT)}
    require_outputs(written, force=options.force)
    device, device_name = choose_device(options.device, frameworks)
    torch.backends.cudnn.benchmark = True  # XLA, too, chooses its convolutions by trying them
    torch._dynamo.config.recompile_limit = 1 << 10
    title = heading(device_name, options.image_size, options.steps)
    print(title)
    variants = [
        Variant(name, framework, mode, dtype, size)
        for dtype, size, framework in itertools.product(dtypes, sizes, frameworks)
        for mode, name in itertools.product(modes[framework], names)
    ]
    timings = measure({v: partial(build, v, options.image_size, device) for v in variants}, rounds=options.steps)
    found = ratios(timings, baselines)
    print(f"\n{table(timings, found)}")
    if options.json:
        files.write(options.json, to_json(timings, found, device=device_name, image_size=options.image_size))
    if options.plot:
        draw_fps(Path(options.plot), timings, found, title)
    if all(timing.error for timing in timings):
        raise UserError("no variant could be run; the reasons are above")


if __name__ == "__main__":
    cli.run(main, define_flags)
