"""Speed measurements: turns, ratios and failures on a simulated clock. Nothing here tests speed itself."""

import json
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import lma_torch
from convert import flag_values, to_torch
from convert.measure import runs
from convert.measure.fps import images_per_second, ratios, row, table
from convert.measure.runs import Variant
from convert.measure.timing import Timing, measure
from lma_jax import LMA
from lma_jax.errors import UserError
from tests.helpers.arrays import relative_error
from tests.helpers.commands import fail, run
from tests.helpers.pairs import know_resnet10

LMA_JAX = Variant("net_lma", "jax", "jit", "float32", 8)
LMA_EAGER = Variant("net_lma", "torch", "eager", "float32", 8)
PLAIN_EAGER = Variant("net", "torch", "eager", "float32", 8)


class Clock:
    """A clock that variants advance: each call of a variant takes the next of its times, then always the last one."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def variant(self, name: str, *times: float, fails_at: int | None = None):
        remaining = list(times)

        def advance():
            self.calls.append(name)
            if self.calls.count(name) == fails_at:
                raise RuntimeError("out of\nmemory " + "x" * 500)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return lambda: advance


def test_variants_take_turns_and_the_first_call_stands_apart():
    clock, said = Clock(), list[str]()
    builders = {LMA_EAGER: clock.variant("lma", 30, 99, 2), PLAIN_EAGER: clock.variant("net", 20, 99, 1)}
    lma, plain = measure(builders, rounds=6, clock=clock, say=said.append)
    assert (lma.first_call, lma.seconds) == (30, [2] * 6)
    assert (plain.first_call, plain.seconds) == (20, [1] * 6)
    assert said == [f"{LMA_EAGER}: first call 30.0 s", f"{PLAIN_EAGER}: first call 20.0 s"]
    # After the first calls, every round runs each twice, untimed and timed, in changing order.
    rounds = [clock.calls[i : i + 4] for i in range(2, 26, 4)]
    assert len(clock.calls) == 26
    assert {tuple(calls) for calls in rounds} == {("lma", "lma", "net", "net"), ("net", "net", "lma", "lma")}


def test_rates_percentiles_and_ratios_are_those_of_the_times():
    lma = Timing(LMA_EAGER, 1.0, [2.0, 4.0, 4.0, 8.0])
    plain = Timing(PLAIN_EAGER, 1.0, [1.0, 1.0, 3.0, 8.0])
    in_jax = Timing(LMA_JAX, 1.0, [1.0, 2.0, 2.0, 4.0])
    assert images_per_second(lma) == 8 / 4
    assert lma.latency == pytest.approx({"p50": 4, "p90": 6.8, "p99": 7.88})
    backbone, framework = ratios([in_jax, lma, plain], {"net_lma": "net"})
    # In pairs by round: 0.5, 0.25, 0.75, 1; the ratio of the medians would be another.
    assert (backbone.variant, backbone.over) == (LMA_EAGER, PLAIN_EAGER)
    assert (backbone.median, backbone.lower, backbone.upper) == (0.625, 0.4375, 0.8125)
    assert backbone.title == "net_lma / net, torch eager, float32, batch 8"
    assert (framework.median, framework.lower, framework.upper) == (2, 2, 2)
    assert framework.title == "jax jit / torch eager, net_lma, float32, batch 8"


def test_only_what_differs_in_one_respect_is_compared():
    other = Variant("net", "torch", "eager", "float32", 16)
    timings = [Timing(variant, 1.0, [1.0]) for variant in (LMA_JAX, other)]
    assert ratios(timings, {"net_lma": "net"}) == []
    assert ratios(timings, {}) == []


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_variant_that_fails_does_not_stop_the_others(fails_at):
    clock, said = Clock(), list[str]()
    builders = {LMA_EAGER: clock.variant("lma", 2, fails_at=fails_at), PLAIN_EAGER: clock.variant("net", 1)}
    lma, plain = measure(builders, rounds=3, clock=clock, say=said.append)
    assert lma.error is not None
    assert lma.error.startswith("RuntimeError: out of memory")
    assert len(lma.error) <= 140
    assert f"{LMA_EAGER}: unavailable, {lma.error}" in said
    assert plain.seconds == [1, 1, 1]
    assert ratios([lma, plain], {"net_lma": "net"}) == []
    assert row(lma)["error"] == lma.error
    assert "seconds" not in row(lma)
    assert "unavailable" in table([lma, plain], [])


def test_a_compiler_that_fails_makes_its_variant_unavailable(monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    model, images = lma_torch.LMA(4), torch.ones(1, 4, 2, 2)
    modes = {Variant("lma", "torch", mode, "float32", 1): mode for mode in runs.MODES["torch"]}
    builders = {variant: partial(runs.torch_run, model, images, mode) for variant, mode in modes.items()}
    errors = [timing.error for timing in measure(builders, rounds=1, say=lambda _: None)]
    assert errors[:2] == [None, None]
    assert all("no working C++ compiler" in str(error) for error in errors[2:])


def test_what_is_run_is_the_network():
    layer = LMA(16, rngs=nnx.Rngs(0))
    model = nnx.List([layer])
    twin = torch.nn.Sequential(lma_torch.LMA(16))
    twin.load_state_dict(to_torch(model))
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 16), np.float32)
    given = runs.jax_run(layer, jnp.asarray(x))()
    for mode in ("eager", "channels_last"):
        expected = runs.torch_run(twin, torch.from_numpy(x).permute(0, 3, 1, 2), mode)()
        assert isinstance(expected, torch.Tensor)
        assert relative_error(given, expected.permute(0, 2, 3, 1)) < 1e-5


@pytest.mark.process
def test_the_command_measures_prints_writes_and_draws(tmp_path):
    options = ("--model=resnet10_lma", "--framework=torch", "--modes=eager,channels_last", "--device=cpu")
    sizes = ("--image_size=16", "--batch_size=2", "--steps=2")
    files = (f"--json={tmp_path / 'fps.json'}", f"--plot={tmp_path / 'fps.png'}")
    output = run("convert.fps", *options, *sizes, *files, setup=know_resnet10)
    written = json.loads((tmp_path / "fps.json").read_text())
    assert len(written["variants"]) == 4
    assert all(len(row["seconds"]) == 2 and row["error"] is None for row in written["variants"])
    assert len(written["ratios"]) == 2
    assert all(ratio["lower"] <= ratio["median"] <= ratio["upper"] for ratio in written["ratios"])
    assert "resnet10_lma / resnet10, torch eager, float32, batch 2" in output
    assert (tmp_path / "fps.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_are_told():
    with pytest.raises(UserError, match="--dtype has no 'float23', did you mean 'float32'"):
        flag_values.choose("dtype", ["float23"], runs.DTYPES)
    with pytest.raises(UserError, match="--modes is empty"):
        flag_values.choose("modes", [], runs.MODES["torch"])
    for given in (["0"], ["-1"], ["8", "x"], []):
        with pytest.raises(UserError, match="--batch_size takes numbers above 0"):
            flag_values.positive("batch_size", given)
    assert flag_values.positive("batch_size", ["8", "1", "8"]) == (8, 1)


@pytest.mark.process
def test_the_command_names_the_closest_network():
    assert "no model is called 'resnet51', did you mean 'resnet50'" in fail("convert.fps", "--model=resnet51")
