"""The benchmarks: what they compare is equal, what they need is little, and the guard guards."""

import argparse
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import bench
import lma_layer
import roofline
import train_step
from helpers.commands import ROOT

OPTIONS = argparse.Namespace(batch=2, dtype="float32", device="cpu", rounds=1)


def test_the_layer_and_its_textbook_form_give_the_same_output_and_gradients():
    calls = lma_layer.variants(6, 5, OPTIONS)
    reference = calls["textbook"][False]()
    for name in ("textbook channels_last", "torch", "torch channels_last"):
        torch.testing.assert_close(calls[name][False](), reference)
        for gradient, expected in zip(calls[name][True](), calls["textbook"][True](), strict=True):
            torch.testing.assert_close(gradient, expected)
    np.testing.assert_allclose(
        np.asarray(calls["jax"][False]()).transpose(0, 3, 1, 2), reference.numpy(), rtol=1e-5, atol=1e-6
    )
    _, (parameters, pixels) = calls["jax"][True]()
    expected = calls["textbook"][True]()
    np.testing.assert_allclose(np.asarray(pixels).transpose(0, 3, 1, 2), expected[0].numpy(), rtol=1e-4, atol=1e-5)
    taps = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(parameters)]
    np.testing.assert_allclose(taps, [grad.numpy().ravel() for grad in expected[1:]], rtol=1e-4, atol=1e-5)


def test_the_compiled_layer_moves_the_map_about_four_times():
    """Two reads for the profiles, one to gate it and one write; the profiles and gates come on top."""
    assert 4 <= roofline.passes(64, 56, OPTIONS) < 5


def test_rematerialisation_keeps_fewer_maps_and_the_step_trains():
    options = argparse.Namespace(batch=8, image_size=32, dtype="float32", device="cpu")
    plain = train_step.JaxStep("resnet18_lma", options, remat=False)
    network, images = plain.network, plain.batch["image"]
    kept = [train_step.kept_bytes(network, plain.state, images, remat=remat) for remat in (False, True)]
    assert 0 < kept[1] < kept[0] / 3
    before = np.asarray(plain.state.params["fc"]["bias"])
    plain()
    assert int(plain.state.step) == 1
    assert not np.array_equal(np.asarray(plain.state.params["fc"]["bias"]), before)


def test_ratios_pair_each_network_with_its_host_and_each_mode_with_its_own():
    names = ["resnet18_lma jax", "resnet18_lma jax_remat", "resnet18_lma torch", "resnet18 jax", "resnet18 torch"]
    assert {(a, b) for a, b, _ in train_step.compared(names)} == {
        ("resnet18_lma jax", "resnet18 jax"),
        ("resnet18_lma torch", "resnet18 torch"),
        ("resnet18_lma jax_remat", "resnet18_lma jax"),
        ("resnet18_lma jax", "resnet18_lma torch"),
        ("resnet18 jax", "resnet18 torch"),
    }


def test_a_variant_that_cannot_run_leaves_the_others(monkeypatch):
    def broken(model, options):
        raise RuntimeError("out of memory")

    modes = {"jax": lambda model, options: lambda: sum(range(1000)), "torch": broken}
    monkeypatch.setattr(train_step, "MODES", modes)
    said: list[str] = []
    options = train_step.arguments().parse_args(["--model", "resnet18_lma", "--rounds", "1"])
    steps, ratios, failed = train_step.compare(options, say=said.append)
    assert {*steps} == {"resnet18_lma jax", "resnet18 jax"}
    assert [ratio["shows"] for ratio in ratios] == [train_step.LMA_OVER_PLAIN]
    assert sum("out of memory" in line for line in said) == 2
    assert [line.partition(":")[0] for line in failed] == ["resnet18_lma torch", "resnet18 torch"]


@pytest.mark.slow
def test_a_comparison_gives_every_ratio_of_the_step():
    command = "--model resnet18_lma --batch 2 --image_size 64 --rounds 1 --modes jax,torch"
    steps, ratios, _ = train_step.compare(train_step.arguments().parse_args(command.split()), say=lambda _: None)
    assert set(steps) == {f"{model} {mode}" for model in ("resnet18_lma", "resnet18") for mode in ("jax", "torch")}
    assert all(step["images_per_second"] > 0 for step in steps.values())
    assert {ratio["shows"] for ratio in ratios} == {train_step.LMA_OVER_PLAIN, "JAX over torch"}


@pytest.mark.parametrize("options", [["--modes", "tensorflow"], ["--model", "resnet50_lam"], ["--rounds", "0"]])
def test_bad_options_are_refused_by_name(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_step.py", *options])
    with pytest.raises(SystemExit) as exit:
        train_step.main()
    assert options[1] in f"{exit.value}{capsys.readouterr().err}"


def test_the_guard_fails_only_what_stays_slow():
    baseline = {"fast": 2.0, "slow": 2.0, "noisy": 2.0}
    runs = iter(
        [
            {"fast": [0.9, 1.0, 1.9], "slow": [0.9, 1.0, 1.1], "noisy": [0.5, 0.6, 0.7]},
            {"fast": [1.1, 1.2, 1.3], "slow": [0.9, 1.0, 1.2], "noisy": [1.7, 1.8, 1.9]},
            {"fast": [1.1, 1.2, 1.3], "slow": [0.8, 0.9, 1.0], "noisy": [0.5, 0.6, 0.7]},
        ]
    )
    found = bench.guarded(lambda: next(runs), baseline)
    assert bench.slower(found, baseline) == ["slow"]
    assert found["noisy"] == [1.7, 1.8, 1.9]


def test_those_for_gpus_need_the_two_frameworks_alone():
    names = {"convert.fps", "folding", "lma_jax.cli", "lma_layer", "roofline", "train_step"}
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import {', '.join(names)}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {module.partition(".")[0] for module in process.stdout.split()}
    assert {name.partition(".")[0] for name in names} <= modules
    extras = {"cykooz_resizer", "grain", "matplotlib", "ml_collections", "PIL", "ptflops", "safetensors", "simplejpeg"}
    assert modules & (extras | {"tensorboard", "tensorflow_datasets", "wandb"}) == set()
