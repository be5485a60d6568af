"""The benchmark of the input path, on a few images."""

import json
import sys

import pytest

import input_pipeline as command
from measurements import input_pipeline


def test_the_command_measures_pixels_costs_and_scaling(monkeypatch, tmp_path, capsys):
    small = {"ROUNDS": 1, "BATCH_SIZE": 2, "SCALING": ((1, 0), (2, 0)), "SCALING_BATCHES": 1}
    for name, value in small.items():
        monkeypatch.setattr(input_pipeline, name, value)
    monkeypatch.setattr(sys, "argv", ["input_pipeline.py", "--images", "2", "--json", str(tmp_path / "figures.json")])
    command.main()
    assert "images/s per core" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["distances"]["train"]["largest"] <= 1
    assert figures["distances"]["eval"]["largest"] <= 1
    assert all(cost["ms"] > 0 for cost in figures["costs"].values())
    assert {"plain decode", "train transform", "eval transform", "loader"} <= {*figures["costs"]}
    assert [row["threads"] for row in figures["scaling"]] == [1, 2]
    assert figures["cores"]["threads"]["3000 images/s"] > figures["cores"]["threads"]["1000 images/s"] > 0


def test_too_few_images_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["input_pipeline.py", "--images", "1"])
    with pytest.raises(SystemExit):
        command.main()
    assert "takes 32 JPEGs, got 1" in capsys.readouterr().err
