"""The figures of docs/results.md are those of the raw metrics beside it."""

import csv
import re
from statistics import mean, stdev

import pytest

from tests.helpers.commands import ROOT

PAGE = (ROOT / "docs/results.md").read_text()
FOLDER = ROOT / "docs/cifar10"
TABLES = {"metrics.csv": ("resnet18", 5), "warm_start.csv": ('resnet18, warm_start=""', 2)}


def last_scores(file: str) -> dict[str, dict[str, float]]:
    """Top-1 of the last evaluation by network and seed."""
    scores: dict[str, dict[str, float]] = {}
    for row in csv.DictReader((FOLDER / file).read_text().splitlines()):
        scores.setdefault(row["network"], {})[row["seed"]] = float(row["val_top1"])
    return scores


@pytest.mark.parametrize("file", TABLES)
def test_the_table_is_that_of_the_raw_metrics(file):
    scores, (baseline, networks) = last_scores(file), TABLES[file]
    assert all(by_seed.keys() == {"0", "1", "2"} for by_seed in scores.values())
    assert len(scores) == networks
    for network, by_seed in scores.items():
        (line,) = re.findall(rf"^\| {re.escape(network)} \|(.*)\|$", PAGE, re.MULTILINE)
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[0] == str(len(by_seed))
        assert cells[3] == f"{mean(by_seed.values()):.2f} ± {stdev(by_seed.values()):.2f}"
        if network != baseline:
            pairs = [by_seed[seed] - scores[baseline][seed] for seed in by_seed]
            assert cells[4].startswith(f"{mean(pairs):+.2f} ± {stdev(pairs):.2f} [")
        for score in by_seed.values():
            assert f"{score:.2f}" in PAGE
