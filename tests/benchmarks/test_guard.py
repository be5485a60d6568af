"""The guard: which figures fail it, and how it ends."""

import json
import sys

import pytest

import bench
from convert.measure.timing import Quartiles
from measurements import guard


def figures(**quartiles: tuple[float, float, float]) -> guard.Figures:
    return {name: Quartiles(*values) for name, values in quartiles.items()}


def test_the_guard_fails_only_what_stays_slow():
    baseline = {"fast": 2.0, "slow": 2.0, "noisy": 2.0}
    runs = iter(
        [
            figures(fast=(0.9, 1.0, 1.9), slow=(0.9, 1.0, 1.1), noisy=(0.5, 0.6, 0.7)),
            figures(fast=(1.1, 1.2, 1.3), slow=(0.9, 1.0, 1.2), noisy=(1.7, 1.8, 1.9)),
            figures(fast=(1.1, 1.2, 1.3), slow=(0.8, 0.9, 1.0), noisy=(0.5, 0.6, 0.7)),
        ]
    )
    found = guard.best_of_attempts(lambda: next(runs), baseline)
    assert guard.slower(found, baseline) == ["slow"]
    assert found["noisy"] == (1.7, 1.8, 1.9)


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ({"kept": 1.0}, ["new"]),
        ({"kept": 1.0, "new": 1.0, "gone": 1.0}, ["gone"]),
        ({"kept": 9.0, "new": 1.0}, ["1 of 2 ratios"]),
        ({"kept": 1.0, "new": 1.0}, []),
    ],
)
def test_the_guard_ends_with_a_sentence_about_slow_new_and_missing_figures(
    baseline, words, monkeypatch, tmp_path, capsys
):
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(baseline))
    monkeypatch.setattr(bench, "BASELINE", file)
    monkeypatch.setattr(guard, "PARTS", {"part": lambda: figures(kept=(1, 1, 1), new=(1, 1, 1))})
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    if words:
        with pytest.raises(SystemExit) as exit:
            bench.main()
        assert all(word in str(exit.value) for word in ["error: ", *words])
    else:
        bench.main()
    assert "kept" in capsys.readouterr().out


def test_update_writes_the_medians(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(guard, "PARTS", {"part": lambda: figures(kept=(1, 2.345, 3))})
    monkeypatch.setattr(sys, "argv", ["bench.py", "--update"])
    bench.main()
    assert json.loads(bench.BASELINE.read_text()) == {"kept": 2.35}
