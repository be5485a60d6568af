"""Runs beside each other: groups of equal configs with several seeds, and their differences run by run."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from convert.measure.size import size_of
from lma_jax.checkpoint.format import DamagedError, Metadata, metadata_of, saved_steps
from lma_jax.errors import UserError, nearest
from lma_jax.recipes import defaults
from lma_jax.registry import parts_of
from lma_jax.training.config import KEYS
from lma_jax.training.reporting.metrics import read_metrics

SCORE = "val_top1"
# Keys whose values do not make another group.
IGNORED = {"seed", *(name for name, key in KEYS.items() if key.resumable)}


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        workdir: its folder.
        metadata: those of its newest checkpoint.
        rows: its evaluations, with the training metrics since the one before.
        speed: median of the images/s while it trained.
    """

    workdir: Path
    metadata: Metadata
    rows: list[dict[str, float]]
    speed: float

    @property
    def seed(self) -> int | None:
        """The seed of its config; None for imported weights."""
        return self.metadata.config.get("seed")

    @property
    def finished(self) -> bool:
        """Whether its last evaluation is at the end, less than a step from it."""
        last = self.rows[-1]
        return last["epoch"] * (1 + 1 / last["step"]) > self.metadata.config.get("epochs", math.inf)

    @property
    def setting(self) -> dict[str, str]:
        """The values of its config that affect the result, besides the seed, as text."""
        config = {**defaults(), **self.metadata.config}
        return {key: json.dumps(value) for key, value in config.items() if key not in IGNORED}


@dataclass(frozen=True)
class Group:
    """Runs whose configs differ in the seed alone.

    Attributes:
        label: the network, and the values of the config that only some groups have.
        runs: in the order of their seeds.
        parameters, macs: those of the network, the latter for one image of the evaluation's size.
    """

    label: str
    runs: list[Run]
    parameters: int
    macs: int

    def scores(self) -> dict[int | None, float]:
        """Top-1 of the last evaluation of each run (%), by seed."""
        return {run.seed: run.rows[-1][SCORE] for run in self.runs}


@dataclass(frozen=True)
class Difference:
    """A group against the baseline, by the runs of equal seeds.

    Attributes:
        pairs: differences of top-1, in points.
        mean, deviation: theirs; the deviation is None for a single pair.
        half_width: of the 95 % interval of the mean by Student's distribution; None for a single pair.
    """

    pairs: list[float]
    mean: float
    deviation: float | None
    half_width: float | None


def read_run(workdir: Path) -> Run:
    """Reads what a training run recorded.

    Raises:
        UserError: the folder holds no run that has been evaluated.
    """
    rows = read_metrics(workdir)
    evaluated = [row for row in rows if {SCORE, "epoch"} <= row.keys()]
    if not evaluated:
        raise UserError(f"{workdir} holds no run that has been evaluated: its metrics.jsonl has no {SCORE}")
    folder = workdir / "checkpoints"
    for step in saved_steps(folder):
        try:
            metadata = metadata_of(folder, step)
        except DamagedError:
            continue
        speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
        return Run(workdir, metadata, evaluated, median(speeds) if speeds else math.nan)
    raise UserError(f"{workdir} holds no checkpoint that is intact")


def group(runs: Sequence[Run]) -> list[Group]:
    """Puts runs of equal configs together, in the order in which they come.

    Raises:
        UserError: two runs of a group have the same seed.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.setting.items())), []).append(run)
    for members in groups.values():
        by_seed: dict[int | None, Run] = {}
        for run in members:
            if (other := by_seed.setdefault(run.seed, run)) is not run:
                raise UserError(f"{other.workdir} and {run.workdir} are the same run twice: config and seed are equal")
    settings = [dict(setting) for setting in groups]
    varying = {key for key in settings[0] if len({setting.get(key) for setting in settings}) > 1}
    return [
        Group(
            _label(members[0], setting, varying),
            sorted(members, key=lambda run: run.seed or 0),
            *size_of(members[0].metadata),
        )
        for setting, members in zip(settings, groups.values())
    ]


def _label(run: Run, setting: dict[str, str], varying: set[str]) -> str:
    further = [f"{key}={setting[key]}" for key in sorted(varying - {"model"})]
    return ", ".join([run.metadata.model, *further])


def choose_baseline(groups: Sequence[Group], label: str | None) -> Group:
    """The group of this label, or of this network if it is alone; by default the first without attention, or the first.

    Raises:
        UserError: there is none.
    """
    if label is None:
        return next((one for one in groups if not parts_of(one.runs[0].metadata.model)[1]), groups[0])
    matching = [one for one in groups if label in (one.label, one.runs[0].metadata.model)]
    if len(matching) != 1:
        labels = [one.label for one in groups]
        what = "several groups are" if matching else f"did you mean {nearest(label, labels)!r}? No group is"
        raise UserError(f"--baseline={label}: {what} called so; there are {'; '.join(labels)}")
    return matching[0]


def difference(one: Group, baseline: Group) -> Difference | None:
    """Compares a group with the baseline; None for the baseline itself, or if no seeds are the same."""
    scores, others = one.scores(), baseline.scores()
    pairs = [scores[seed] - others[seed] for seed in scores if seed in others]
    if one is baseline or not pairs:
        return None
    if len(pairs) == 1:
        return Difference(pairs, pairs[0], None, None)
    from scipy.stats import t

    deviation = stdev(pairs)
    half_width = float(t.ppf(0.975, len(pairs) - 1)) * deviation / math.sqrt(len(pairs))
    return Difference(pairs, mean(pairs), deviation, half_width)


def markdown(groups: Sequence[Group], baseline: Group) -> str:
    """The table of the groups."""
    lines = [
        f"| network | runs | parameters | MACs (M) | top-1 (%) | against {baseline.label}, points | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in groups:
        scores = list(one.scores().values())
        found = difference(one, baseline)
        compared = "" if found is None else _signed(found)
        size = f"{one.parameters:,} | {one.macs / 1e6:,.1f}"
        top1, speed = _spread(scores) + _unfinished(one), median(run.speed for run in one.runs)
        lines.append(f"| {one.label} | {len(scores)} | {size} | {top1} | {compared} | {speed:,.0f} |")
    notes = ["top-1: of the last evaluation, mean ± standard deviation over the seeds."]
    notes += ["Against the baseline: mean ± standard deviation of the differences at equal seeds [95 % interval]."]
    notes += ["*: of a run that has not ended."] * any(_unfinished(one) for one in groups)
    return "\n".join([*lines, "", *notes, ""])


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _signed(found: Difference) -> str:
    if found.deviation is None or found.half_width is None:
        return f"{found.mean:+.2f}"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return f"{found.mean:+.2f} ± {found.deviation:.2f} [{low:+.2f}, {high:+.2f}]"


def _unfinished(one: Group) -> str:
    return "" if all(run.finished for run in one.runs) else "*"


def records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every evaluation of every run, for tables."""
    names = list(dict.fromkeys(name for one in groups for run in one.runs for row in run.rows for name in row))
    return [
        {"network": one.label, "seed": run.seed, "run": str(run.workdir)} | {name: row.get(name) for name in names}
        for one in groups
        for run in one.runs
        for row in run.rows
    ]


def summaries(groups: Sequence[Group], baseline: Group) -> dict[str, Any]:
    """The figures of the table, for JSON."""
    return {
        "baseline": baseline.label,
        "groups": [
            {
                "network": one.label,
                "parameters": one.parameters,
                "macs": one.macs,
                "top1_by_seed": {str(seed): score for seed, score in one.scores().items()},
                "finished": all(run.finished for run in one.runs),
                "difference": asdict(found) if (found := difference(one, baseline)) else None,
            }
            for one in groups
        ],
    }
