"""Runs of 18 steps: their final state and their metrics."""

from pathlib import Path

import numpy as np

from lma_jax.checkpoint.format import load_checkpoint

STEPS = 18


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    checkpoint = load_checkpoint(workdir)
    assert checkpoint.step == STEPS
    return checkpoint.arrays


def assert_same_bits(workdir: Path, reference: Path) -> None:
    arrays, expected = final_state(workdir), final_state(reference)
    assert arrays.keys() == expected.keys()
    different = [path for path, array in arrays.items() if array.tobytes() != expected[path].tobytes()]
    assert different == []


def deterministic(rows: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in ("images_per_second", "data_wait")} for row in rows
    ]
