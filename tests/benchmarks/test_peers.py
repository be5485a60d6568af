"""The benchmark against other libraries: its ratios, what it leaves out, and the network that it builds itself."""

import math
import sys

import jax
import pytest

import peers as command
from measurements import peers
from measurements.flax_resnet import ResNet50
from measurements.train_step import Setting


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs the command with some arguments. Returns its exit code and what it wrote to stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
        with pytest.raises(SystemExit) as exit:
            command.main()
        return exit.value.code, *capsys.readouterr()

    return run


def test_a_variant_without_its_package_is_named_with_what_to_install(monkeypatch, run_command):
    for package in ("timm", "keras"):
        monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run_command("--variants", "timm,keras")
    assert code == 2
    assert out.splitlines() == [
        "timm: left out, timm is not installed (pip install timm)",
        "keras: left out, keras is not installed (pip install keras)",
    ]
    assert err.splitlines() == ["error: no variant is left to measure"]


@pytest.mark.parametrize(
    "options", [("--model", "resnet5O"), ("--variants", "jax,tim"), ("--tasks", "train")], ids=lambda pair: pair[0]
)
def test_an_unknown_name_is_one_line_and_exit_code_2(options, run_command):
    code, out, err = run_command(*options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert options[0] in err
    assert repr(options[1].split(",")[-1]) in err


def test_each_library_is_compared_with_this_project_in_the_same_framework(monkeypatch):
    def peer(over, models):
        return peers.Peer(lambda model, task, setting: lambda: sum(range(1000)), over, None, models)

    both = ("resnet50", "mobilenetv2")
    fakes = {
        "jax": peer(None, both),
        "keras": peer("jax", both),
        "timm": peer("torch", both),
        "flax": peer("jax", both[:1]),
    }
    monkeypatch.setattr(peers, "PEERS", fakes)
    rows = peers.compare(both, ["training"], fakes, Setting(2, 32), steps=2).rows
    assert [(row["model"], row["variant"], row.get("over")) for row in rows] == [
        ("resnet50", "jax", None),
        ("resnet50", "keras", "jax"),
        ("resnet50", "timm", None),  # this project's network in PyTorch was not measured
        ("resnet50", "flax", "jax"),
        ("mobilenetv2", "jax", None),
        ("mobilenetv2", "keras", "jax"),
        ("mobilenetv2", "timm", None),
    ]
    lines = peers.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[3].endswith(" of jax |")


def test_the_resnet50_of_flax_has_the_known_number_of_parameters():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    variables = jax.eval_shape(lambda x: ResNet50().init(jax.random.key(0), x, training=False), images)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == 25_557_032
