"""The benchmark of the training step: its variants, their ratios, and what it does with those that fail."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import lma_jax.registry
import lma_torch.registry
import train_step as command
from measurements import train_step
from measurements.train_step import Setting

pytestmark = pytest.mark.deep

SETTING = Setting(batch_size=2, image_size=32)


@pytest.fixture
def narrow_resnet18(monkeypatch):
    """ResNet-18 has an eighth of its channels, so that it compiles and runs quickly."""
    for registry in (lma_jax.registry, lma_torch.registry):
        resnet18 = registry.BACKBONES["resnet18"]
        narrow = replace(resnet18, build=partial(resnet18.build, width=8))
        monkeypatch.setitem(registry.BACKBONES, "resnet18", narrow)


def test_rematerialisation_keeps_fewer_maps_and_the_step_trains(narrow_resnet18):
    plain = train_step.JaxStep("resnet18_lma", SETTING)
    kept = train_step.kept_bytes(plain.definition, plain.state, plain.batch["image"], remat=True)
    assert 0 < kept < plain.memory["kept"] / 3
    before = np.asarray(plain.state.params["fc"]["bias"])
    plain()
    assert int(plain.state.step) == 1
    assert not np.array_equal(np.asarray(plain.state.params["fc"]["bias"]), before)


def test_each_network_is_compared_with_its_backbone_and_each_mode_with_its_own():
    names = ["resnet18_lma jax", "resnet18_lma jax_remat", "resnet18_lma torch", "resnet18 jax", "resnet18 torch"]
    assert {(a, b) for a, b, _ in train_step.pairs(names)} == {
        ("resnet18_lma jax", "resnet18 jax"),
        ("resnet18_lma torch", "resnet18 torch"),
        ("resnet18_lma jax_remat", "resnet18_lma jax"),
        ("resnet18_lma jax", "resnet18_lma torch"),
        ("resnet18 jax", "resnet18 torch"),
    }


def test_a_variant_that_cannot_run_leaves_the_others(monkeypatch):
    def broken(model, setting):
        raise RuntimeError("out of memory")

    modes = {"jax": lambda model, setting: lambda: sum(range(1000)), "torch": broken}
    monkeypatch.setattr(train_step, "MODES", modes)
    said: list[str] = []
    found = train_step.compare(["resnet18_lma"], ["jax", "torch"], SETTING, steps=1, say=said.append)
    assert {*found.steps} == {"resnet18_lma jax", "resnet18 jax"}
    assert [ratio["shows"] for ratio in found.ratios] == [train_step.LMA_OVER_PLAIN]
    assert sum("out of memory" in line for line in said) == 2
    assert [line.partition(":")[0] for line in found.failed] == ["resnet18_lma torch", "resnet18 torch"]


def test_a_comparison_gives_every_ratio_of_the_step(narrow_resnet18):
    found = train_step.compare(["resnet18_lma"], ["jax", "torch"], SETTING, steps=1)
    assert found.failed == []
    names = {f"{model} {mode}" for model in ("resnet18_lma", "resnet18") for mode in ("jax", "torch")}
    assert set(found.steps) == names
    assert all(step["images_per_second"] > 0 for step in found.steps.values())
    assert all(found.steps[name]["host_ms"] > 0 for name in names if name.endswith("jax"))
    assert {ratio["shows"] for ratio in found.ratios} == {train_step.LMA_OVER_PLAIN, "JAX over torch"}


@pytest.mark.parametrize("options", [["--modes", "tensorflow"], ["--model", "resnet50_lam"], ["--steps", "0"]])
def test_bad_options_are_refused_by_name(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_step.py", *options])
    with pytest.raises(SystemExit) as exit:
        command.main()
    assert options[1] in f"{exit.value}{capsys.readouterr().err}"
