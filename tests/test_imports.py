"""What importing the packages loads, in interpreters of their own."""

import pytest

from tests.helpers.commands import python

pytestmark = pytest.mark.process

COMMANDS = (
    *("lma_jax.train", "lma_jax.evaluate", "lma_jax.gradcam", "lma_jax.data.prepare"),
    *("convert.to_torch", "convert.to_jax", "convert.to_stablehlo", "convert.to_hub", "convert.verify"),
    *("convert.flops", "convert.fps", "convert.table1"),
)


# What a package offers, in the interpreter that imports it.
OFFERS = (
    "assert all(callable(getattr({0}, name)) for name in {0}.__all__)\n"
    "assert {{*{0}.__all__}} <= {{*dir({0})}}\n"
    "assert not hasattr({0}, 'something_else')"
)


def modules_after(statement: str) -> set[str]:
    """The top-level modules that are loaded after a statement."""
    process = python("-c", f"import sys\n{statement}\nprint(*sys.modules)")
    assert process.returncode == 0, process.stderr
    return {name.partition(".")[0] for name in process.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    ("statement", "foreign"),
    [
        ("import lma_jax, convert", {"jax", "flax", "torch", "numpy"}),
        (
            "import lma_jax\n" + OFFERS.format("lma_jax"),
            {"torch", "tensorflow", "matplotlib", "orbax", "grain", "tensorflow_datasets", "PIL", "safetensors"},
        ),
        ("import lma_torch\n" + OFFERS.format("lma_torch"), {"jax", "flax", "tensorflow", "matplotlib"}),
        ("import lma_jax.preprocessing, lma_jax.hub_folder", {"jax", "PIL", "simplejpeg", "cykooz_resizer", "torch"}),
        (
            "import convert\n" + OFFERS.format("convert"),
            {"orbax", "grain", "tensorflow", "tensorflow_datasets", "matplotlib", "PIL"},
        ),
    ],
)
def test_a_package_offers_what_it_promises_and_imports_nothing_heavy_but_its_framework(statement, foreign):
    assert modules_after(statement) & foreign == set()


def test_the_trainer_and_its_writer_import_neither_torch_nor_tensorflow(tmp_path):
    writing = f"MetricsWriter(Path({str(tmp_path)!r}), step=0, config={{}}).write({{'step': 1, 'train_loss': 1.0}})"
    modules = modules_after(
        f"import lma_jax.training.trainer; from pathlib import Path;"
        f"from lma_jax.training.reporting.metrics import MetricsWriter; {writing}"
    )
    assert modules & {"torch", "tensorflow", "matplotlib"} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_waits_for_no_framework(command):
    helping = (
        f"import runpy\nsys.argv = ['{command}', '--help']\n"
        f"try: runpy.run_module('{command}', run_name='__main__', alter_sys=True)\nexcept SystemExit: pass"
    )
    assert modules_after(helping) & {"jax", "flax", "torch", "tensorflow_datasets", "matplotlib"} == set()
