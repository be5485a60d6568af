"""The collectives of the compiled training step, which the prediction counts."""

from collections import Counter
from functools import cache

import pytest

from measurements import collectives
from measurements.collectives import Collective, network_shapes, tree_bytes
from measurements.prediction import SYNC_ALL_REDUCES, SYNC_STATISTICS, Assumptions
from tests.helpers import tiny
from tests.helpers.tiny import Trial, batch

METRICS = 5 * 4  # loss, top1, top5, count and skipped_images


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    tiny.register(monkeypatch)


@cache
def reduced(**values) -> tuple[list[Collective], int, int]:
    """The collectives of a compiled step, and the bytes of its parameters and of its statistics."""
    trial = Trial(**values)
    text = trial.train_step.lower(trial.state, trial.put(batch(0))).compile().as_text()
    assert text is not None
    return collectives.collectives(text), tree_bytes(trial.state.params), tree_bytes(trial.state.batch_stats)


@pytest.mark.parametrize("options", [{"devices": 2}, {"devices": 4, "accumulate": 2, "dtype": "bfloat16"}])
def test_a_step_reduces_gradients_statistics_and_metrics_in_float32_and_nothing_else(options):
    found, params, statistics = reduced(batch_norm="local", **options)
    assert {one.kind for one in found} == {"all-reduce"}
    total = sum((one.sizes for one in found), Counter())
    assert total == {"f32": params + statistics + 8, "s32": METRICS - 8}


def test_shared_statistics_add_collectives_and_twice_the_statistics():
    local, params, statistics = reduced(batch_norm="local", devices=2)
    sync, _, _ = reduced(batch_norm="sync", devices=2)
    assert len(sync) == len(local) + SYNC_ALL_REDUCES  # one BatchNorm
    expected = params + (1 + SYNC_STATISTICS) * statistics + METRICS
    assert sum(one.sizes.total() for one in sync) == expected


@pytest.mark.parametrize("batch_norm", ["local", "sync"])
def test_the_command_finds_the_predicted_bytes_in_the_compiled_step(batch_norm, capsys):
    assert collectives.verify("tiny_lma", batch_norm, [2])
    assert "tiny_lma, 2 devices: predicted" in capsys.readouterr().out


def test_the_command_reports_bytes_that_were_not_predicted(monkeypatch, capsys):
    compiled_step = collectives.compiled_step

    def predicted_too_little(*arguments, **options):
        text, parts = compiled_step(*arguments, **options)
        return text, {**parts, "metrics": parts["metrics"] - 1}

    monkeypatch.setattr(collectives, "compiled_step", predicted_too_little)
    assert not collectives.verify("tiny_lma", "local", [2])


def test_collectives_are_read_from_the_text_of_a_program():
    text = """
      %x.1 = (f32[2,3]{1,0}, /*index=1*/bf16[4]{0}, s32[]) all-reduce(%a, %b, %c), channel_id=1
      %y = f32[8]{0} all-gather-start(%x), dimensions={0}
      ROOT %z = f32[8]{0} add(%all-reduce.1, %y)
    """
    assert collectives.collectives(text) == [
        ("all-reduce", Counter(f32=24, bf16=8, s32=4)),
        ("all-gather", Counter(f32=32)),
    ]


def test_the_assumed_bytes_are_those_of_the_network():
    assumptions = Assumptions()
    sizes = tuple(map(tree_bytes, network_shapes("resnet50_lma")))
    assert sizes == (assumptions.gradient_bytes, assumptions.statistics_bytes)
    assert assumptions.metric_bytes == METRICS
