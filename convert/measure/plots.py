"""Plots of measurements. They need matplotlib."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from convert.measure.comparison import SCORE, Group
from convert.measure.fps import Ratio, images_per_second
from convert.measure.runs import Variant
from convert.measure.timing import Timing
from lma_jax import files
from lma_jax.errors import require_packages
from lma_jax.overwriting import Kind
from lma_jax.registry import parts_of
from lma_jax.weight_files import require_suffix

# Written into every plot, whereby it is recognised.
CREATOR = "lma convert"
PLOT = Kind(holds=(CREATOR,))
SUFFIXES = (".png", ".pdf", ".svg")

# What is drawn against MACs: the label of the axis, and the colours of this project's figures.
PANELS = {
    "top1": ("top-1 (%)", {"top1": "tab:green"}),
    "relative_fps": ("FPS / plain backbone", {"relative_fps_jax": "tab:blue", "relative_fps_torch": "tab:orange"}),
}


def require_plot(path: str | None) -> None:
    """Raises a UserError if a path, unless it is empty, is of no format of plots, or if matplotlib is missing."""
    if path:
        require_suffix(Path(path), SUFFIXES)
        require_packages("--plot", "matplotlib")


def draw_table1(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws accuracy and relative FPS against MACs, with one column of panels for each backbone.

    The paper's figures are hollow, those of this project are filled.

    Args:
        path: file to write.
        records: what `table1.records` returned.

    Raises:
        UserError: the file cannot be written.
    """
    backbones = list(dict.fromkeys(parts_of(record["model"])[0] for record in records))
    figure = _figure(1 + 3.6 * len(backbones), 7.5)
    grid = figure.subplots(2, len(backbones), squeeze=False)
    for column, backbone in zip(grid.T, backbones):
        own = [record for record in records if parts_of(record["model"])[0] == backbone]
        for axes, (name, (label, keys)) in zip(column, PANELS.items()):
            for number, record in enumerate(sorted(own, key=lambda record: record[f"paper_{name}"])):
                giga, paper = record["macs"] / 1e9, record[f"paper_{name}"]
                axes.plot(giga, paper, "o", markerfacecolor="none", color="black")
                title = parts_of(record["model"])[1].upper() or "plain"
                offset, side = ((6, "left"), (-6, "right"))[number % 2]  # neighbours are labelled on different sides
                axes.annotate(title, (giga, paper), (offset, -3), textcoords="offset points", fontsize=8, ha=side)
                for key, colour in keys.items():
                    if record[key] is not None:
                        axes.plot(giga, record[key], "o", color=colour)
            axes.set(xlabel="MACs (G)", ylabel=label)
            axes.margins(0.25)
            axes.grid(alpha=0.3)
        column[0].set_title(backbone)
    names = {"black": "paper (hollow)", "tab:green": "checkpoint", "tab:blue": "JAX", "tab:orange": "PyTorch"}
    handles = [grid[0, 0].plot([], [], "o", color=colour, label=label)[0] for colour, label in names.items()]
    handles[0].set_markerfacecolor("none")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _save(figure, path)


def draw_comparison(path: Path, groups: Sequence[Group], baseline: Group) -> None:
    """Draws top-1 of the evaluations of each group, mean and range over the seeds, and the last one of each run.

    Args:
        path: file to write.
        groups: what to compare.
        baseline: one of them, whose mean is a line in the second panel.

    Raises:
        UserError: the file cannot be written.
    """
    labels = [_wrapped(one.label) for one in groups]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = _figure(11, 4 + 0.25 * lines)
    curves, scores = figure.subplots(1, 2)
    for number, (one, label) in enumerate(zip(groups, labels)):
        colour, style = f"C{number % 10}", ("-", "--", ":", "-.")[number // 10 % 4]
        epochs, tops = _common_evaluations(one)
        means = [mean(top) for top in tops]
        curves.plot(epochs, means, color=colour, linestyle=style, marker=".", label=label)
        curves.fill_between(epochs, [min(top) for top in tops], [max(top) for top in tops], color=colour, alpha=0.15)
        last = list(one.scores().values())
        scores.plot(last, [number] * len(last), "o", color=colour, markerfacecolor="none")
        scores.plot(mean(last), number, "d", color=colour)
    scores.axvline(mean(baseline.scores().values()), color="grey", linewidth=0.8)
    scores.set(xlabel="top-1 of the last evaluation (%)", title="each run, and the mean (diamond)")
    scores.set_yticks(range(len(groups)), labels)
    scores.set_ylim(len(groups) - 0.5, -0.5)
    curves.set(xlabel="epoch", ylabel="validation top-1 (%)", title="mean and range over the seeds")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    for axes in (curves, scores):
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    _save(figure, path)


def _wrapped(label: str) -> str:
    """A label in lines that leave room for the panels, without the signs of formulas."""
    return textwrap.fill(label, 40, break_on_hyphens=False).replace("$", r"\$")


def _common_evaluations(one: Group) -> tuple[list[float], list[list[float]]]:
    """The epochs of the evaluations that all runs of a group have, and the scores of the runs at each."""
    by_step = [{row["step"]: row for row in run.rows} for run in one.runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    return [by_step[0][step]["epoch"] for step in steps], [[rows[step][SCORE] for rows in by_step] for step in steps]


def draw_fps(path: Path, timings: Sequence[Timing[Variant]], ratios: Sequence[Ratio], title: str) -> None:
    """Draws images/s of the variants, and their ratios with quartiles.

    Raises:
        UserError: the file cannot be written.
    """
    done = [timing for timing in timings if timing.error is None]
    figure = _figure(13, 1.5 + 0.3 * max(len(done), len(ratios)))
    speeds, relative = figure.subplots(1, 2)
    colours = ["tab:blue" if timing.variant.framework == "jax" else "tab:orange" for timing in done]
    speeds.barh([str(timing.variant) for timing in done], [images_per_second(timing) for timing in done], color=colours)
    speeds.set(xlabel="images/s at the median latency")
    medians = [ratio.median for ratio in ratios]
    spread = [[r.median - r.lower for r in ratios], [r.upper - r.median for r in ratios]]
    relative.errorbar(medians, [ratio.title for ratio in ratios], xerr=spread or None, fmt="o", capsize=3)
    relative.axvline(1, color="grey", linewidth=0.8)
    relative.set(xlabel="ratio of images/s, median and quartiles")
    for axes in (speeds, relative):
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, its size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Creator": CREATOR})
