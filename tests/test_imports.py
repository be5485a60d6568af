"""What importing the packages brings with it, in interpreters of their own."""

import subprocess
import sys

import pytest

from helpers.commands import ROOT


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in process.stdout.split()}


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("lma_jax", {"torch", "tensorflow", "matplotlib", "orbax", "grain", "tensorflow_datasets", "PIL"}),
        ("lma_torch", {"jax", "flax", "tensorflow", "matplotlib"}),
    ],
)
def test_a_package_imports_nothing_heavy_but_its_framework(package, foreign):
    modules = modules_after(f"import {package}")
    assert package in modules
    assert modules & foreign == set()


def test_the_trainer_and_its_writer_import_neither_torch_nor_tensorflow(tmp_path):
    writing = f"MetricsWriter(Path({str(tmp_path)!r}), step=0, config={{}}).write({{'step': 1, 'train_loss': 1.0}})"
    modules = modules_after(
        f"import lma_jax.training.trainer; from pathlib import Path;"
        f"from lma_jax.training.metrics import MetricsWriter; {writing}"
    )
    assert modules & {"torch", "tensorflow", "matplotlib"} == set()


def test_convert_offers_its_two_functions():
    code = "import convert; assert callable(convert.to_torch) and callable(convert.to_jax)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
