"""The commands of benchmarks/, in processes of their own."""

import subprocess
import sys

import pytest

from measurements import options
from tests.helpers.commands import ROOT


def test_those_for_gpus_need_only_the_two_frameworks():
    names = {"convert.fps", "convert.measure.fps", "folding", "lma_jax.cli", "lma_layer", "roofline", "train_step"}
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import {', '.join(names)}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {module.partition(".")[0] for module in process.stdout.split()}
    assert {name.partition(".")[0] for name in names} <= modules
    extras = {"cykooz_resizer", "grain", "matplotlib", "ml_collections", "PIL", "ptflops", "safetensors", "simplejpeg"}
    assert modules & (extras | {"tensorboard", "tensorflow_datasets", "wandb"}) == set()


def test_the_prediction_needs_no_package():
    command = [sys.executable, "-S", "benchmarks/scaling.py", "--gpus", "8"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "8 GPUs" in process.stdout


def test_results_replace_those_of_the_same_command_alone(tmp_path, capsys):
    file = tmp_path / "results.json"
    for own in ("", '{"settings": {"model": "resnet50", "json": null}}'):
        file.write_text(own)
        assert vars(options.parser("A command.").parse_args(["--json", str(file)])) == {"json": file}
    file.write_text("mine")
    with pytest.raises(SystemExit) as end:
        options.parser("A command.").parse_args(["--json", str(file)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --json={file} exists")
    assert options.parser("A command.").parse_args(["--json", str(file), "--force"]).json == file
