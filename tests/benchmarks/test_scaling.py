"""The prediction of training on many GPUs, and the collectives of the compiled step that it counts."""

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

import scaling
from configs import common
from helpers import tiny
from helpers.commands import ROOT
from helpers.tiny import Trial, batch
from scaling import Assumptions, predict

METRICS = 5 * 4  # loss, top1, top5, count and skipped_images


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    tiny.register(monkeypatch)


@cache
def reduced(**values) -> tuple[list[tuple[str, Counter[str]]], int, int]:
    """The collectives of a compiled step, and the bytes of its parameters and of its statistics."""
    trial = Trial(**values)
    compiled = trial.train_step.lower(trial.state, trial.place(batch(0))).compile()
    sizes = map(scaling.tree_bytes, (trial.state.params, trial.state.batch_stats))
    return scaling.collectives(compiled.as_text()), *sizes


@pytest.mark.parametrize("options", [{"devices": 2}, {"devices": 4, "accumulate": 2, "dtype": "bfloat16"}])
def test_a_step_reduces_gradients_statistics_and_metrics_in_float32_and_nothing_else(options):
    found, params, statistics = reduced(batch_norm="local", **options)
    assert {kind for kind, _ in found} == {"all-reduce"}
    total = sum((sizes for _, sizes in found), Counter())
    assert total == {"f32": params + statistics + 8, "s32": METRICS - 8}


def test_shared_statistics_add_collectives_and_twice_the_statistics():
    local, params, statistics = reduced(batch_norm="local", devices=2)
    sync, _, _ = reduced(batch_norm="sync", devices=2)
    assert len(sync) == len(local) + scaling.SYNC_ALL_REDUCES  # one BatchNorm
    expected = params + (1 + scaling.SYNC_STATISTICS) * statistics + METRICS
    assert sum(sizes.total() for _, sizes in sync) == expected


def test_collectives_are_read_from_the_text_of_a_program():
    text = """
      %x.1 = (f32[2,3]{1,0}, /*index=1*/bf16[4]{0}, s32[]) all-reduce(%a, %b, %c), channel_id=1
      %y = f32[8]{0} all-gather-start(%x), dimensions={0}
      ROOT %z = f32[8]{0} add(%all-reduce.1, %y)
    """
    assert scaling.collectives(text) == [
        ("all-reduce", Counter(f32=24, bf16=8, s32=4)),
        ("all-gather", Counter(f32=32)),
    ]


def test_the_assumed_bytes_are_those_of_the_network():
    network = scaling.network_shapes("resnet50_lma")
    assumptions = Assumptions()
    assert tuple(map(scaling.tree_bytes, network)) == (assumptions.gradient_bytes, assumptions.statistics_bytes)
    assert assumptions.metric_bytes == METRICS


def test_one_gpu_does_not_communicate():
    alone = predict(Assumptions(), 1)
    assert (alone.wire_bytes, alone.all_reduces, alone.all_reduce) == (0, 0, 0)
    assert alone.step == (alone.compute, alone.compute) == (64 / 2790, 64 / 2790)
    with pytest.raises(ValueError, match="at least 1 GPU, got 0"):
        predict(Assumptions(), 0)


def test_more_gpus_send_more_and_take_longer():
    predictions = [predict(Assumptions(), gpus) for gpus in (1, 2, 4, 8, 16, 64, 512)]
    for fewer, more in pairwise(predictions):
        assert fewer.wire_bytes < more.wire_bytes < 2 * Assumptions().reduced_bytes
        assert fewer.all_reduce < more.all_reduce
        assert fewer.epoch > more.epoch
        assert fewer.pace <= more.pace <= more.images
        assert all(hidden <= shown for shown, hidden in (fewer.step, more.step))


def test_the_slower_link_sets_the_time_of_the_all_reduce():
    assumptions = Assumptions(nvlink=200, network=10, hop_latency=0)
    inside, across = (predict(assumptions, gpus) for gpus in (8, 16))
    assert inside.all_reduce == pytest.approx(inside.wire_bytes / 200e9)
    assert across.all_reduce == pytest.approx(across.wire_bytes / 10e9)
    # 14 hops in a machine, 2 more for another machine, in each of 4 all-reduces of float32 and one of int32.
    late = replace(assumptions, hop_latency=5)
    assert predict(late, 16).all_reduce - across.all_reduce == pytest.approx(5 * 16 * 5e-6)
    assert predict(replace(late, sync_layers=53), 16).all_reduces == 5 + 4 * 53


@pytest.mark.parametrize(
    ("part", "relief"),
    [
        ("input process", {"data_workers": 8}),
        ("input process", {"processes_per_machine": 8}),
        ("input cores", {"cores_per_machine": 256}),
        ("storage", {"local_copy": True}),
        ("checkpoints", {"eval_every": 10.0}),
        ("all-reduce", {"batch_per_gpu": 256}),
    ],
)
def test_the_relief_lowers_the_load_of_the_part_that_is_tightest(part, relief):
    slow = {
        "input process": {},
        "input cores": {"cores_per_machine": 4},
        "storage": {"storage": 0.1},
        "checkpoints": {"checkpoint_write": 0.001},
        "all-reduce": {"network": 1},
    }
    assumptions = Assumptions(**slow[part])
    held_up = predict(assumptions, 64)
    assert held_up.tightest == part
    assert held_up.pace == pytest.approx(held_up.images / held_up.loads[part])
    relieved = predict(replace(assumptions, **relief), 64)
    assert relieved.loads[part] < held_up.loads[part] / 2


def test_a_part_saturates_at_the_first_size_with_a_load_above_one():
    assumptions = Assumptions()
    gpus = scaling.saturates_at(assumptions, "storage")
    below, at = (predict(assumptions, number).loads["storage"] for number in (gpus - 1, gpus))
    assert below <= 1 < at
    assert scaling.saturates_at(replace(assumptions, local_copy=True), "storage") is None


def test_reliefs_name_keys_of_the_config():
    quoted = [code for text in scaling.RELIEFS.values() for code in text.split("`")[1::2]]
    named = {code.removeprefix("config.").split("=")[0] for code in quoted}
    assert named == {"data_workers", "data_dir", "eval_every", "batch_size", "accumulate"}
    assert named <= set(common.get_config())


def test_the_page_shows_what_the_program_prints():
    page = (ROOT / "docs" / "scaling.md").read_text()
    assumptions = Assumptions()
    assert scaling.assumption_table(assumptions) in page
    assert scaling.prediction_table(assumptions, [predict(assumptions, gpus) for gpus in (8, 64, 512)]) in page
    assert scaling.saturation_table(assumptions) in page
