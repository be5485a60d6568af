"""Runs beside each other: groups of equal configs with several seeds, and their differences run by run."""

import json
import math
import os
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from convert.measure.size import size_of
from lma_jax import files
from lma_jax.checkpoint.format import DamagedError, Metadata, metadata_of, saved_steps
from lma_jax.errors import UserError, nearest, warn
from lma_jax.model_card import cell
from lma_jax.recipes import defaults
from lma_jax.registry import parts_of, problem_with
from lma_jax.training.config import DECISIVE, KEYS
from lma_jax.training.reporting.metrics import read_metrics

SCORE = "val_top1"
# How many folders an error names.
SHOWN = 3


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        workdir: its folder.
        metadata: those of its newest checkpoint.
        rows: its evaluations, with the training metrics since the one before.
        speed: median of the images/s while it trained; NaN where they are unknown.
        parameters, macs: those of its network, the latter for one image of the evaluation's size.
    """

    workdir: Path
    metadata: Metadata
    rows: list[dict[str, float]]
    speed: float
    parameters: int
    macs: int

    @property
    def seed(self) -> int:
        """The seed of its config."""
        return self.metadata.config["seed"]

    @property
    def finished(self) -> bool:
        """Whether its last evaluation is at the end, less than a step from it."""
        last = self.rows[-1]
        return last["epoch"] * (1 + 1 / last["step"]) > self.metadata.config["epochs"]

    @property
    def setting(self) -> dict[str, str]:
        """What affects its result besides the seed, as text: its config, its data, and the weights it started from."""
        config = {**defaults(), **self.metadata.config}
        known = {split: identity for split, identity in self.metadata.to_json()["data"].items() if identity}
        data = f"{zlib.crc32(json.dumps(known, sort_keys=True).encode()):08x}" if known else "unknown"
        return {
            **{key: json.dumps(_canonical(config[key]), ensure_ascii=False) for key in DECISIVE - {"seed"}},
            "init_from": files.printable(os.path.normpath(config["init_from"])) if config["init_from"] else "",
            "classes": str(self.metadata.num_classes),
            "data": data,
        }

    def is_part_of(self, other: "Run") -> bool:
        """Whether a folder is a copy of another, made at its end or before."""
        if self.rows != other.rows[: len(self.rows)]:
            return False
        return (self.seed, self.setting) == (other.seed, other.setting)


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        label: the network, and the values of the setting that only some groups have.
        runs: in the order of their seeds.
    """

    label: str
    runs: list[Run]

    @property
    def finished(self) -> bool:
        """Whether all of its runs have ended."""
        return all(run.finished for run in self.runs)

    def scores(self) -> dict[int, float]:
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


def read_runs(workdirs: Iterable[Path]) -> list[Run]:
    """Reads runs. A folder without one, and a copy of another, are left out, with a warning on stderr.

    Raises:
        UserError: a path does not exist, or no run is left.
    """
    given: dict[Path, Path] = {}
    for workdir in workdirs:
        given.setdefault(Path(os.path.realpath(workdir)), workdir)
    runs: list[Run] = []
    problems = []
    for workdir in given.values():
        if not os.path.lexists(workdir):
            raise UserError(f"there is no {workdir}: name the workdirs of training runs, such as runs/*")
        try:
            run = read_run(workdir)
            if whole := next((other for other in runs if run.is_part_of(other)), None):
                raise UserError(f"it is a copy of {whole.workdir}")
            earlier = [other for other in runs if other.is_part_of(run)]
            problems += [f"left out {other.workdir}: it is a copy of {workdir}" for other in earlier]
            runs = [other for other in runs if other not in earlier] + [run]
        except (UserError, OSError) as problem:
            problems.append(f"left out {workdir}: {problem}")
    if not runs:
        raise UserError(f"no run is left to compare: {'; '.join(problems[:SHOWN])}")
    for line in problems:
        warn(line)
    return runs


def read_run(workdir: Path) -> Run:
    """Reads what a training run recorded.

    Raises:
        UserError: there is no run that has been evaluated, or its network is unknown.
    """
    if not workdir.is_dir():
        raise UserError("it is no folder")
    metadata, rows = _newest_metadata(workdir / "checkpoints"), read_metrics(workdir, say=warn)
    if "seed" not in metadata.config:
        raise UserError("it holds imported weights, no training run")
    for key in ("seed", "epochs"):
        value, kind = metadata.config.get(key), KEYS[key].kind
        if not kind.check(value):
            raise UserError(f"its config has {key}={value!r}, not {kind.allowed}")
    if problem := problem_with(metadata.model, registered_by=metadata.registered_by):
        raise UserError(problem)
    evaluated = [row for row in rows if row["step"] > 0 and "epoch" in row and math.isfinite(row.get(SCORE, math.nan))]
    if not evaluated:
        raise UserError(f"its run has not been evaluated yet, its metrics.jsonl has no {SCORE}")
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    try:
        size = size_of(metadata)
    except (TypeError, ValueError) as error:
        raise UserError(f"its network cannot be built: {error}") from error
    return Run(workdir, metadata, evaluated, median(speeds) if speeds else math.nan, *size)


def _newest_metadata(checkpoints: Path) -> Metadata:
    steps = saved_steps(checkpoints)
    for step in steps:
        try:
            return metadata_of(checkpoints, step)
        except DamagedError:
            continue
    raise UserError("all of its checkpoints are damaged" if steps else "it holds no checkpoint")


def group(runs: Sequence[Run]) -> list[Group]:
    """Puts runs of equal settings together, in the order in which they come.

    Raises:
        UserError: two runs of a group have the same seed.
    """
    given = [(run, run.setting) for run in runs]
    starts = _starts({(setting["init_from"], run.seed) for run, setting in given})
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run, setting in given:
        setting["init_from"] = json.dumps(starts[setting["init_from"], run.seed], ensure_ascii=False)
        groups.setdefault(tuple(sorted(setting.items())), []).append(run)
    for members in groups.values():
        by_seed: dict[int, Run] = {}
        for run in members:
            if (other := by_seed.setdefault(run.seed, run)) is not run:
                raise UserError(
                    f"{other.workdir} and {run.workdir} are the same run twice, with other results: config, data and "
                    "seed are equal; name one of them"
                )
    settings = [dict(setting) for setting in groups]
    varying = {key for key in settings[0] if len({setting[key] for setting in settings}) > 1}
    return [
        Group(_label(members[0], setting, varying), sorted(members, key=lambda run: run.seed))
        for setting, members in zip(settings, groups.values())
    ]


def _canonical(value: Any) -> Any:
    """One form of the values that are equal: 1.0 is 1, and a tuple is a list."""
    if isinstance(value, list | tuple):
        return [_canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _starts(pairs: Collection[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """The weights that runs started from, by pairs of init_from and seed, with * for the seed where each has its own.

    Those of runs/plain-0 and runs/plain-1 are the same for the seeds 0 and 1, and so is a file that both started from.
    Of the numbers in a path that could be the seed, it is the one for which most seeds have the same path.
    """
    seeds: dict[str, set[int]] = {}
    for start, seed in pairs:
        for form in _forms(start, seed):
            seeds.setdefault(form, set()).add(seed)
    return {(start, seed): max(_forms(start, seed), key=lambda form: len(seeds[form])) for start, seed in pairs}


def _forms(start: str, seed: int) -> list[str]:
    """A path as it is, with * for all numbers that are the seed, and for one of them, from the last to the first."""
    seeds = re.compile(rf"(?<!\d){seed}(?!\d)")
    single = [f"{start[: one.start()]}*{start[one.end() :]}" for one in seeds.finditer(start)]
    return [seeds.sub("*", start), *reversed(single), start]


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
        f"| network | runs | parameters | MACs (M) | top-1 (%) | against {cell(baseline.label)}, points | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in groups:
        scores = list(one.scores().values())
        found = difference(one, baseline)
        compared = (
            "" if found is None else _signed(found) + _mark(one, baseline) + _share(len(found.pairs), len(scores))
        )
        size = f"{one.runs[0].parameters:,} | {one.runs[0].macs / 1e6:,.1f}"
        cells = f"{len(scores)} | {size} | {_spread(scores)}{_mark(one)} | {compared} | {_speed(one)}"
        lines.append(f"| {cell(one.label)} | {cells} |")
    notes = ["top-1: of the last evaluation, mean ± standard deviation over the seeds."]
    notes += ["Against the baseline: mean ± standard deviation of the differences at equal seeds [95 % interval]."]
    notes += ["*: of a run that has not ended, or has failed."] * (not all(one.finished for one in groups))
    notes += ["data: a digest of its files' names and sizes."] * any(", data=" in one.label for one in groups)
    return "\n".join([*lines, "", *notes, ""])


def _share(count: int, total: int) -> str:
    return "" if count == total else f" ({count} of {total} seeds)"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _signed(found: Difference) -> str:
    if found.deviation is None or found.half_width is None:
        return f"{found.mean:+.2f}"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return f"{found.mean:+.2f} ± {found.deviation:.2f} [{low:+.2f}, {high:+.2f}]"


def _mark(*groups: Group) -> str:
    return "" if all(one.finished for one in groups) else "*"


def _speed(one: Group) -> str:
    speeds = [run.speed for run in one.runs if math.isfinite(run.speed)]
    return f"{median(speeds):,.0f}" if speeds else ""


def records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every evaluation of every run, for tables."""
    names = list(dict.fromkeys(name for one in groups for run in one.runs for row in run.rows for name in row))
    return [
        {"network": one.label, "seed": run.seed, "run": files.printable(str(run.workdir))}
        | {name: row.get(name) for name in names}
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
                "parameters": one.runs[0].parameters,
                "macs": one.runs[0].macs,
                "top1_by_seed": {str(seed): score for seed, score in one.scores().items()},
                "finished": one.finished,
                "difference": asdict(found) if (found := difference(one, baseline)) else None,
            }
            for one in groups
        ],
    }
