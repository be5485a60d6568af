"""The paper's Table 1 as running code: parameters, MACs and FPS of every row in both frameworks, beside the paper's.

python -m convert.table1 --quick                                    parameters and MACs only: a minute
python -m convert.table1 --rows "resnet50*" --batch_size 32         with images per second
python -m convert.table1 --checkpoints runs/r50,runs/r50_se --markdown table1.md --plot table1.png

Each figure that is not as printed in the paper has a mark with the reason. The paper's FPS were measured on an RTX
A6000, so FPS are compared as ratios to the plain backbone, measured in turns in one run.
"""

import json
import os
from pathlib import Path

from absl import flags

from convert.flag_values import frameworks_of
from lma_jax import cli, files
from lma_jax.overwriting import Kind, require_outputs

TABLE = Kind(holds=("| network | parameters | MACs |",), lines=("|", "[", "In parentheses: "))
FIGURES = Kind(holds=("model,parameters,macs,products,",))
RECORDS = Kind(holds=('"products": ', '"paper_relative_fps": '))


def define_flags() -> None:
    flags.DEFINE_list("rows", ["*"], "Rows of the table: names or patterns.")
    flags.DEFINE_bool("quick", False, "Parameters and MACs only.")
    flags.DEFINE_list("checkpoints", [], "Workdirs of training runs, for their accuracy.")
    flags.DEFINE_enum("framework", "both", ["both", "jax", "torch"], "Framework to measure FPS in.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Precision of the FPS.")
    flags.DEFINE_integer("batch_size", 32, "Images per batch of the FPS.", lower_bound=1)
    flags.DEFINE_integer("image_size", 224, "Height and width of the images of the FPS in pixels.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Timed batches of each network.", lower_bound=1)
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Device; auto is a GPU if all frameworks can use it.")
    flags.DEFINE_string("markdown", None, "File for the table as printed.")
    flags.DEFINE_string("csv", None, "File for all figures.")
    flags.DEFINE_string("json", None, "File for all figures.")
    flags.DEFINE_string("plot", None, "File for a plot: .png, .pdf or .svg.")
    cli.define_force()
    cli.define_import()


def main() -> None:
    # Both frameworks share a GPU. JAX reads this at its first use of one.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from convert.measure import table1
    from convert.measure.plots import PLOT, draw_table1, require_plot
    from convert.measure.runs import choose_device

    options = flags.FLAGS
    require_plot(options.plot)
    tables = {"markdown": (options.markdown, TABLE), "csv": (options.csv, FIGURES)}
    written = {**tables, "json": (options.json, RECORDS), "plot": (options.plot, PLOT)}
    inputs = [Path(workdir, "checkpoints") for workdir in options.checkpoints]
    require_outputs(written, inputs=inputs, force=options.force)
    rows = [table1.counted(published) for published in table1.chosen(options.rows)]
    table1.fill_accuracy(rows, options.checkpoints)
    if not options.quick:
        frameworks = frameworks_of(options.framework)
        device, name = choose_device(options.device, frameworks)
        print(name)
        sizes = dict(batch_size=options.batch_size, image_size=options.image_size, rounds=options.steps)
        table1.fill_fps(rows, frameworks, dtype=options.dtype, device=device, **sizes)
    records = table1.records(rows)
    print(table1.markdown(rows), end="")
    if options.markdown:
        files.write(options.markdown, table1.markdown(rows))
    if options.csv:
        files.write(options.csv, files.csv_text(records))
    if options.json:
        files.write(options.json, json.dumps(records, indent=1))
    if options.plot:
        draw_table1(Path(options.plot), records)


if __name__ == "__main__":
    cli.run(main, define_flags)
