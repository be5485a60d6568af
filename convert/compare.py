"""Compares training runs: python -m convert.compare runs/*

Runs that differ in the seed alone are one row, with mean and deviation of top-1. Each row is compared with the baseline
seed by seed, and what a config has that others have not is part of its name, as are other data and other initial
weights. Folders that hold no run are left out. --plot draws the curves and the scores.
"""

import json
from pathlib import Path

from absl import flags

from lma_jax import cli, files
from lma_jax.errors import UserError
from lma_jax.overwriting import Kind, require_outputs

TABLE = Kind(
    holds=("| network | runs | parameters | MACs (M) | top-1 (%) |",),
    lines=("|", "top-1: ", "Against the baseline: ", "*: ", "data: "),
)
ROWS = Kind(holds=("network,seed,run,step,epoch,",))
SUMMARY = Kind(holds=('"top1_by_seed": ',))


def define_flags() -> None:
    flags.DEFINE_string("baseline", None, "Network to compare with; by default the first without attention.")
    flags.DEFINE_string("markdown", None, "File for the table as printed.")
    flags.DEFINE_string("csv", None, "File for every evaluation of every run.")
    flags.DEFINE_string("json", None, "File for the figures of the table.")
    flags.DEFINE_string("plot", None, "File for a plot: .png, .pdf or .svg.")
    cli.define_force()
    cli.define_import()


def main(*workdirs: str) -> None:
    from convert.measure import comparison
    from convert.measure.plots import PLOT, draw_comparison, require_plot

    options, runs = flags.FLAGS, [files.path_of(workdir) for workdir in dict.fromkeys(workdirs)]
    if not runs:
        raise UserError("no run given: name the workdirs of training runs, such as runs/*")
    require_plot(options.plot)
    written = {
        "markdown": (options.markdown, TABLE),
        "csv": (options.csv, ROWS),
        "json": (options.json, SUMMARY),
        "plot": (options.plot, PLOT),
    }
    inputs = [Path(workdir, part) for workdir in runs for part in ("checkpoints", "metrics.jsonl")]
    require_outputs(written, inputs=inputs, force=options.force)
    groups = comparison.group(comparison.read_runs(runs))
    baseline = comparison.choose_baseline(groups, options.baseline)
    table = comparison.markdown(groups, baseline)
    print(table, end="")
    if options.markdown:
        files.write(options.markdown, table)
    if options.csv:
        files.write(options.csv, files.csv_text(comparison.records(groups)))
    if options.json:
        files.write(options.json, json.dumps(comparison.summaries(groups, baseline), indent=1) + "\n")
    if options.plot:
        draw_comparison(Path(options.plot), groups, baseline)


if __name__ == "__main__":
    cli.run(main, define_flags, takes_arguments=True)
