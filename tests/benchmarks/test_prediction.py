"""The prediction of training on many GPUs, and the page that shows it."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from configs import common
from measurements import prediction_tables
from measurements.prediction import RELIEFS, Assumptions, predict, saturates_at
from tests.helpers.commands import ROOT


def test_one_gpu_does_not_communicate():
    alone = predict(Assumptions(), 1)
    assert (alone.wire_bytes, alone.all_reduces, alone.all_reduce) == (0, 0, 0)
    assert alone.step == (alone.compute, alone.compute) == (64 / 2790, 64 / 2790)
    with pytest.raises(ValueError, match="at least 1 GPU, got 0"):
        predict(Assumptions(), 0)


def test_assumptions_out_of_range_are_refused_by_name():
    assert Assumptions(hop_latency=0, data_workers=0).hop_latency == 0
    with pytest.raises(ValueError, match="--sync_layers=-1 must be at least 0; --nvlink=0 must be above 0"):
        Assumptions(nvlink=0, sync_layers=-1)


def test_more_gpus_send_more_and_take_longer():
    predictions = [predict(Assumptions(), gpus) for gpus in (1, 2, 4, 8, 16, 64, 512)]
    for fewer, more in pairwise(predictions):
        assert fewer.wire_bytes < more.wire_bytes < 2 * Assumptions().reduced_bytes
        assert fewer.all_reduce < more.all_reduce
        assert fewer.epoch > more.epoch
        assert fewer.throughput <= more.throughput <= more.images
        assert all(hidden <= shown for shown, hidden in (fewer.step, more.step))


def test_the_slower_link_sets_the_time_of_the_all_reduce():
    assumptions = Assumptions(nvlink=200, network=10, hop_latency=0)
    inside, across = (predict(assumptions, gpus) for gpus in (8, 16))
    assert inside.all_reduce == pytest.approx(inside.wire_bytes / 200e9)
    assert across.all_reduce == pytest.approx(across.wire_bytes / 10e9)
    # 14 hops in a machine, 2 more for another machine, in each of 13 all-reduces of float32 and one of int32.
    late = replace(assumptions, hop_latency=5)
    assert predict(late, 16).all_reduce - across.all_reduce == pytest.approx(14 * 16 * 5e-6)
    assert predict(replace(late, sync_layers=53), 16).all_reduces == 14 + 4 * 53


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
def test_the_relief_lowers_the_load_of_the_bottleneck(part, relief):
    slow: dict[str, dict[str, Any]] = {
        "input process": {},
        "input cores": {"cores_per_machine": 4},
        "storage": {"storage": 0.1},
        "checkpoints": {"checkpoint_write": 0.001},
        "all-reduce": {"network": 1},
    }
    assumptions = Assumptions(**slow[part])
    limited = predict(assumptions, 64)
    assert limited.bottleneck == part
    assert limited.throughput == pytest.approx(limited.images / limited.loads[part])
    relieved = predict(replace(assumptions, **relief), 64)
    assert relieved.loads[part] < limited.loads[part] / 2


def test_a_part_saturates_at_the_first_size_with_a_load_above_one():
    assumptions = Assumptions()
    gpus = saturates_at(assumptions, "storage")
    assert gpus is not None
    below, at = (predict(assumptions, number).loads["storage"] for number in (gpus - 1, gpus))
    assert below <= 1 < at
    assert saturates_at(replace(assumptions, local_copy=True), "storage") is None


def test_reliefs_name_keys_of_the_config():
    quoted = [code for text in RELIEFS.values() for code in text.split("`")[1::2]]
    named = {code.removeprefix("config.").split("=")[0] for code in quoted}
    assert named == {"data_workers", "data_dir", "eval_every", "batch_size", "accumulate"}
    assert named <= set(common.get_config())


def test_the_page_shows_what_the_program_prints():
    page = (ROOT / "docs" / "scaling.md").read_text()
    assumptions = Assumptions()
    assert prediction_tables.assumption_table(assumptions) in page
    assert (
        prediction_tables.prediction_table(assumptions, [predict(assumptions, gpus) for gpus in (8, 64, 512)]) in page
    )
    assert prediction_tables.saturation_table(assumptions) in page
