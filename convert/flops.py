"""Multiply-accumulates (MACs) of the networks, counted in both frameworks and in the paper's convention.

python -m convert.flops --model resnet50_lma [--by-layer] [--input-size 224x320]
python -m convert.flops --model "*" --json macs.json --csv macs.csv

conv + linear   convolutions and matrix products without biases, LMA's two correlations being convolutions;
                in JAX from the jaxpr, in PyTorch by torch.utils.flop_counter, and equal layer by layer
aten            ptflops' count of the same in its backend "aten", which adds the biases
Table 1         the paper's convention, ptflops' backend "pytorch" with count_functional=False: the above, and for n
                input values 2n in a batch or group normalisation and n in a layer normalisation, ReLU, ReLU6 or pooling
                module; LMA as published, with pooling modules: 2 * C * H * W for them and K * C * (H + W) for the
                correlations

For networks of your own, see convert/measure/flops.py.
"""

import sys
import textwrap

from absl import flags

from convert import flag_values
from lma_jax import cli, files
from lma_jax.overwriting import Kind, require_outputs

COUNTS = Kind(holds=('"columns": {', '"models": ['))
TABLE = Kind(holds=("model,", ",jax,torch,"))


def define_flags() -> None:
    flags.DEFINE_string("model", "resnet50_lma", 'Network, or a pattern of list_models() such as "resnet*".')
    flags.DEFINE_bool("by_layer", False, "Also print every layer.")
    flags.DEFINE_string("input_size", "224", "Pixels of the image: one number, or <height>x<width>.")
    flags.DEFINE_enum("framework", "both", ["both", "jax", "torch"], "Framework to count in.")
    flags.DEFINE_string("json", None, "File for the results, every layer included.")
    flags.DEFINE_string("csv", None, "File for the table as printed; with --by_layer, that of the layers.")
    cli.define_force()
    cli.define_import()
    flags.DEFINE_alias("by-layer", "by_layer")
    flags.DEFINE_alias("input-size", "input_size")


def main() -> None:
    options = flags.FLAGS
    size = flag_values.parse_size(options.input_size)
    names = cli.models_named(options.model)
    written = {"json": (options.json, COUNTS), "csv": (options.csv, TABLE)}
    require_outputs(written, force=options.force)

    from convert.measure.flops import count_by_name, format_table, legend, to_json

    counts = [count_by_name(name, size, options.framework) for name in names]
    print(f"multiply-accumulates of one image, {size[0]} x {size[1]}")
    print(format_table([count.summary for count in counts]))
    for name, meaning in legend().items():
        print(textwrap.fill(meaning, 110, initial_indent=f"{name:12}", subsequent_indent=" " * 12))
    if options.by_layer:
        for count in counts:
            print(f"\n{count.model} by layer, table1 by its rules\n{format_table(count.layers)}")
    if options.csv and options.by_layer:
        rows = [{"model": count.model, **row} for count in counts for row in count.layers]
        files.write(options.csv, files.csv_text(rows))
    elif options.csv:
        files.write(options.csv, files.csv_text([count.summary for count in counts]))
    if options.json:
        files.write(options.json, to_json(counts))
    problems = [problem for count in counts for problem in count.problems]
    if problems:
        print("error:", "; ".join(problems), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define_flags)
