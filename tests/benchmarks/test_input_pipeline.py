"""The benchmark of the input path, on a few images."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import input_pipeline as command
from measurements import input_pipeline


class Here:
    """Stands for a pool of processes."""

    @staticmethod
    def apply(function, arguments):
        return function(*arguments)


def test_the_command_measures_pixels_costs_and_scaling(monkeypatch, tmp_path, capsys):
    small = {"ROUNDS": 1, "BATCH_SIZE": 2, "SCALING": ((1, 0), (2, 0)), "SCALING_BATCHES": 1}
    small |= {"MEMORY": {"threads": 2, "batch_size": 8}}
    for name, value in small.items():
        monkeypatch.setattr(input_pipeline, name, value)
    here = SimpleNamespace(Pool=lambda count: nullcontext(Here))
    monkeypatch.setattr(input_pipeline.multiprocessing, "get_context", lambda method: here)
    monkeypatch.setattr(sys, "argv", ["input_pipeline.py", "--images", "2", "--json", str(tmp_path / "figures.json")])
    command.main()
    assert "images/s per core" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["distances"]["train"]["largest"] <= 1
    assert figures["distances"]["eval"]["largest"] <= 1
    assert all(cost["ms"] > 0 for cost in figures["costs"].values())
    tasks = {"plain decode", "crop and resize alone", "train transform", "eval transform", "loader"}
    assert tasks <= {*figures["costs"]}
    assert figures["distances"]["train"]["differ"] < 0.02
    assert figures["memory"]["MB of a batch"] == pytest.approx(8 * 224**2 * 3 / 1e6)
    assert figures["memory"]["MB"] > 0
    assert [row["threads"] for row in figures["scaling"]] == [1, 2]
    assert figures["cores"]["threads"]["3000 images/s"] > figures["cores"]["threads"]["1000 images/s"] > 0


def test_too_few_images_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["input_pipeline.py", "--images", "1"])
    with pytest.raises(SystemExit):
        command.main()
    assert "takes 32 JPEGs, got 1" in capsys.readouterr().err
