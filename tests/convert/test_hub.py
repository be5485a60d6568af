"""Folders of the Hugging Face Hub: what they hold, that they load, and that bad ones are refused in one line.

timm loads the real thing where it is installed; the names that it and transformers read are written out here as well.
"""

import json
import math
import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flax import nnx

import convert
import lma_jax
import lma_torch
from convert.export.hub import require_repository, upload
from convert.export.labels import export_labels
from lma_jax.checkpoint.format import Checkpoint, Metadata
from lma_jax.checkpoint.manager import save_weights
from lma_jax.errors import UserError, one_line
from lma_jax.hub_folder import FILES, config, crop_share, describe
from lma_jax.naming import to_names
from lma_jax.preprocessing import IMAGENET, Preprocessing
from lma_jax.recipes import load
from lma_jax.weight_files import read_weights
from tests.helpers.commands import ROOT, fail, python, run
from tests.helpers.pairs import golden_pair, know_resnet10, register_resnet10
from tests.helpers.weights import golden_weights

pytestmark = pytest.mark.deep

NAMES = ("cat", "dog", "grey\nwolf")
OPTIONS = {"width": 4, "stem": "small", "output_stride": 8, "drop_path": 0.1}
SMALL = Preprocessing(image_size=33, resize_size=40, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        register_resnet10(patch)
        yield


@pytest.fixture(scope="module")
def pair():
    """A network with options, in both frameworks."""
    return golden_pair("resnet10_lma", num_classes=3, **OPTIONS)


@pytest.mark.parametrize("writer", ["jax", "torch"])
def test_a_folder_is_the_same_network_in_both_frameworks(writer, pair, tmp_path):
    jax_model, torch_model = pair
    package, model = {"jax": (lma_jax, jax_model), "torch": (lma_torch, torch_model)}[writer]
    for _ in range(2):  # a folder of its own is replaced
        package.save_pretrained(
            model, tmp_path / "hub", class_names=NAMES, preprocessing=SMALL, metadata={"loss": "softmax"}
        )
    expected = torch_model.state_dict()
    loaded = lma_torch.from_pretrained(tmp_path / "hub")
    again: Any = lma_jax.from_pretrained(tmp_path / "hub", rngs=nnx.Rngs(0))
    assert dict(loaded.options) == dict(again.options) == OPTIONS
    assert not loaded.training
    assert again.bn1.use_running_average
    for tensors in (loaded.state_dict(), convert.to_torch(again)):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    described = {"model": "resnet10_lma", "model_options": OPTIONS, "num_classes": 3, "class_names": list(NAMES)}
    images = {"image_size": 33, "resize_size": 40, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
    _, metadata = read_weights(tmp_path / "hub/model.safetensors")
    assert metadata == {**described, "preprocessing": images, "loss": "softmax"}
    assert (tmp_path / "hub/labels.txt").read_text() == "cat\ndog\ngrey wolf\n"
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {*FILES} - {"curves.png"}


def test_a_folder_is_fitted_to_other_classes_and_images(pair, tmp_path):
    lma_torch.save_pretrained(pair[1], tmp_path)
    model = lma_torch.from_pretrained(tmp_path, num_classes=5, in_chans=1)
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 5)
    same: Any = lma_torch.create_model("resnet10_lma", weights=tmp_path)
    assert same.training
    assert torch.equal(same.fc.weight, pair[1].fc.weight)
    assert not (tmp_path / "labels.txt").exists()


# What timm's and transformers' loaders read, by their sources.
FOR_BOTH = {
    "architecture": "resnet18",
    "num_classes": 3,
    "num_features": 512,
    "global_pool": "avg",
    "model_args": {"in_chans": 3},
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": IMAGENET.mean,
        "std": IMAGENET.std,
        "num_classes": 3,
        "pool_size": None,
        "first_conv": "conv1",
        "classifier": "fc",
    },
    "label_names": NAMES,
    "architectures": ["TimmWrapperForImageClassification"],
    "model_type": "timm_wrapper",
    "num_labels": 3,
    "image_size": 224,
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: index for index, name in enumerate(NAMES)},
}


def configured(name: str, **options) -> dict:
    model = lma_torch.create_model(name, num_classes=3, device="meta", **options)
    known = describe(model, name=name, options=dict(model.options), class_names=NAMES, preprocessing=None)
    weights = model.state_dict()
    return config(known, to_names(weights, "timm", position="") if known.timm_name else weights)


def test_config_says_what_timm_and_transformers_read_and_names_only_what_they_have():
    assert configured("resnet18") == {"model": "resnet18", "model_options": {}, **FOR_BOTH}
    gray = configured("resnet18", drop_path=0.1, in_chans=1)
    assert gray["architecture"] == "resnet18"
    assert gray["pretrained_cfg"]["input_size"] == [1, 224, 224]
    for name, options in (("resnet18_lma", {}), ("resnet18", {"width": 8}), ("mobilenetv2", {"width_mult": 0.1})):
        found = configured(name, **options)
        assert (found["architecture"], found["model_type"]) == (f"lma_{name}", "lma")
    assert found["pretrained_cfg"]["first_conv"] == "features.0.0"
    assert found["pretrained_cfg"]["classifier"] == "classifier.1"
    found = configured("mobilenetv2", width_mult=0.35)
    assert found["architecture"] == "mobilenetv2_035"
    assert found["pretrained_cfg"]["first_conv"] == "conv_stem"
    assert found["pretrained_cfg"]["classifier"] == "classifier"


def test_timm_resizes_images_to_the_same_size():
    for size in range(1, 400, 7):
        for resized in range(size, 500, 3):
            assert math.floor(size / crop_share(Preprocessing(size, resized, IMAGENET.mean, IMAGENET.std))) == resized


def test_a_folder_in_timms_names_is_read_as_well_as_one_that_timm_wrote(tmp_path):
    model = lma_torch.create_model("mobilenetv2", num_classes=3, width_mult=0.35).eval()
    lma_torch.save_pretrained(model, tmp_path)
    theirs = {"architecture": "mobilenetv2_035", "num_classes": 3, "pretrained_cfg": {"num_classes": 3}}
    for _ in range(2):
        assert torch.equal(
            lma_torch.from_pretrained(tmp_path)(torch.ones(1, 3, 32, 32)), model(torch.ones(1, 3, 32, 32))
        )
        (tmp_path / "config.json").write_text(json.dumps(theirs))
    gray = lma_torch.create_model("mobilenetv2", num_classes=3, width_mult=0.35, in_chans=1, output_stride=8).eval()
    lma_torch.save_pretrained(gray, tmp_path / "gray")
    described = {**theirs, "model_args": {"num_classes": 3, "in_chans": 1, "output_stride": 8}}
    (tmp_path / "gray/config.json").write_text(json.dumps(described))
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(lma_torch.from_pretrained(tmp_path / "gray")(images), gray(images))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_timm_loads_a_plain_network(name, tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    model = lma_torch.create_model(name, num_classes=3).double().eval()
    model.load_state_dict(golden_weights(model))
    lma_torch.save_pretrained(model, tmp_path, class_names=NAMES)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=False).double().eval()
    theirs.load_state_dict(timm.models.load_state_dict(str(tmp_path / "model.safetensors")), strict=True)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model(images)
    assert (theirs(images) - expected).abs().max() < 1e-9 * expected.abs().max()
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert list(loaded.pretrained_cfg["label_names"]) == list(NAMES)


GOOD = {"model": "resnet10_lma", "model_options": {"width": 4, "stem": "small"}, "num_classes": 3}
BAD = [
    ("[" * 200_000, "config.json: "),
    ("{", "config.json: "),
    ("[]", "it is no mapping"),
    ({**GOOD, "model": 3}, "it names no network"),
    ({**GOOD, "model": "x" * 10_000}, "it names no network"),
    ({**GOOD, "model": "resnet10_lna"}, "did you mean 'resnet10_lma'"),
    ({"architecture": "resnet18", "num_classes": 3, "global_pool": "max"}, "its global_pool is not avg"),
    ({"architecture": "resnet18", "num_classes": 3, "model_args": {"global_pool": "max"}}, "global_pool is not avg"),
    ({"architecture": "resnet18", "num_classes": 3, "model_args": {"act_layer": "silu"}}, "model_args has 'act_layer'"),
    ({"architecture": "resnet18", "num_classes": 3, "model_args": 3}, "model_args must be a mapping"),
    ({**GOOD, "num_classes": True}, "num_classes must be a whole number"),
    ({**GOOD, "num_classes": 4}, r"fc\.(weight|bias)"),
    ({**GOOD, "num_classes": 2**31 - 1}, "cannot use"),
    ({**GOOD, "model_options": ["width"]}, "must be a mapping to strings and numbers"),
    ({**GOOD, "model_options": {"stem": [1]}}, "must be a mapping to strings and numbers"),
    ({**GOOD, "model_options": {"widht": 4}}, "did you mean 'width'"),
    *(
        ({**GOOD, "model_options": {**GOOD["model_options"], **bad}}, "cannot use")  # type: ignore[dict-item]
        for bad in (
            {"stem": "x\ny"},
            {"width": "4"},
            {"width": -1},
            {"width": 0},
            {"width": 2**62},
            {"width": 1e300},
            {"drop_path": "x"},
            {"output_stride": 0},
            {"in_chans": 10**30},
            {"dtype": "float64"},
            {"rngs": 1},
            {"num_classes": 3},
            {"block": "x"},
            {"weights": "/etc/passwd"},
        )
    ),
]


@pytest.fixture(scope="module")
def folder(small_network, tmp_path_factory) -> Path:
    """A folder whose config.json the tests replace."""
    folder = tmp_path_factory.mktemp("hub")
    lma_torch.save_pretrained(lma_torch.create_model("resnet10_lma", num_classes=3, width=4, stem="small"), folder)
    return folder


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("content", "expected"), BAD, ids=range(len(BAD)))
def test_a_bad_config_is_refused_in_one_line_in_both_frameworks(content, expected, folder):
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=expected) as in_torch:
        lma_torch.from_pretrained(folder)
    with pytest.raises(UserError, match=expected) as in_jax:
        lma_jax.from_pretrained(folder, rngs=nnx.Rngs(0))
    for found in (in_torch, in_jax):
        assert len(one_line(found.value)) < 20_000


def test_a_folder_without_its_files_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has no config.json: it is no folder of save_pretrained"):
        lma_torch.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match=r"model.safetensors does not exist"):
        lma_torch.from_pretrained(tmp_path)
    monkeypatch.setattr("lma_jax.hub_folder.CONFIG_LIMIT", 10)
    with pytest.raises(UserError, match="it takes more than 10 bytes"):
        lma_torch.from_pretrained(tmp_path)


def test_what_cannot_be_loaded_is_not_saved(pair, tmp_path):
    _, model = pair
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(README.md\): give a new folder"):
        lma_torch.save_pretrained(model, foreign)
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        lma_torch.save_pretrained(model, tmp_path / "new", name="resnet10")
    with pytest.raises(ValueError, match="2 class_names were given for 3 classes"):
        lma_torch.save_pretrained(model, tmp_path / "new", class_names=("a", "b"))
    with pytest.raises(ValueError, match="a network of feature maps cannot be saved"):
        lma_torch.save_pretrained(
            lma_torch.create_model("resnet10", features_only=True), tmp_path / "new", name="resnet10"
        )
    by_class = lma_torch.ResNet(lma_torch.BasicBlock, (1, 1, 1, 1), num_classes=2, width=4)
    with pytest.raises(ValueError, match="unknown model ''"):
        lma_torch.save_pretrained(by_class, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (foreign / "README.md").read_text() == "mine"
    lma_torch.save_pretrained(by_class, foreign, name="resnet10", force=True)
    loaded: Any = lma_torch.from_pretrained(foreign)
    assert torch.equal(loaded.conv1.weight, by_class.conv1.weight)
    (tmp_path / "other.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        lma_torch.save_pretrained(by_class, tmp_path / "new" / "..", name="resnet10")
    names = [os.fsdecode(b"caf\xe9"), "b"]
    lma_torch.save_pretrained(by_class, tmp_path / "latin", name="resnet10", class_names=names)
    assert json.loads((tmp_path / "latin" / "config.json").read_text())["label_names"] == names


@pytest.fixture(scope="module")
def workdir(pair, tmp_path_factory) -> Path:
    """What a run leaves behind."""
    workdir = tmp_path_factory.mktemp("runs") / "r10"
    recipe = load("common").to_dict() | OPTIONS | vars(SMALL) | {"image_size": 9, "resize_size": 10}
    recipe |= {"model": "resnet10_lma", "dataset": "folder", "data_dir": "/home/me/data", "batch_size": 8}
    del recipe["output_stride"]
    metrics = {"val_top1": 90.126, "val_top5": 100.0, "val_loss": 0.5, "epoch": 3.0}
    model, _ = golden_pair("resnet10_lma", num_classes=3, **{k: v for k, v in OPTIONS.items() if k != "output_stride"})
    save_weights(workdir, model, Metadata("resnet10_lma", 3, ("a", "b", "c"), json.loads(json.dumps(recipe)), metrics))
    (workdir / "curves.png").write_bytes(b"\x89PNG")
    return workdir


@pytest.mark.process
def test_a_run_becomes_a_folder_with_a_model_card_whose_code_runs(workdir, tmp_path, monkeypatch):
    output = tmp_path / 'r\u00e91"0\U0001f600\\n'
    said = run("convert.to_hub", f"--checkpoint={workdir}", f"--output={output}", setup=know_resnet10)
    assert said == f"resnet10_lma written to {output}: {', '.join(FILES)}\n"
    assert (output / "curves.png").read_bytes() == b"\x89PNG"
    card = (output / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert (found["license"], found["pipeline_tag"]) == ("apache-2.0", "image-classification")
    (result,) = found["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [90.13, 100.0]
    assert "datasets" not in found  # a folder is no data set of the hub
    for text in ("| `batch_size` | `8` |", "| top-1 accuracy (%) | 90.13 |", "(curves.png)"):
        assert text in body
    assert re.search(r"^- float64: (\d\d) of \1 outputs are equal", body, re.MULTILINE)
    assert found["model-index"][0]["name"] == output.name
    for path in output.iterdir():
        assert str(workdir).encode() not in path.read_bytes()
        assert b"/home/me" not in path.read_bytes()
    monkeypatch.chdir(tmp_path)
    codes = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    logits = []
    for code in codes:
        names: dict = {}
        exec(compile(code, "README.md", "exec"), names)
        logits.append(np.asarray(names["logits"].tolist()))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5 * np.abs(logits[0]).max())
    assert logits[0].shape == (1, 3)


@pytest.mark.process
def test_the_command_refuses_in_one_line(workdir, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    command = ("convert.to_hub", f"--checkpoint={workdir}")
    assert "holds other files (mine.txt)" in fail(*command, f"--output={tmp_path}")
    assert "must be the name of an organisation" in fail(*command, f"--output={tmp_path / 'a'}", "--repo=name")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_hub_is_asked_for_what_is_no_folder_and_says_in_one_line_why_not(folder, monkeypatch, tmp_path):
    (folder / "config.json").write_text(json.dumps(GOOD))
    asked: list[Any] = []

    def download(*repository, **options):
        asked.append((repository, options["revision"]))
        if repository == ("org/absent",):
            raise ConnectionError("no\nnetwork")
        return str(folder)

    class Api:
        def create_repo(self, *arguments, **options):
            asked.append((arguments, options))

        def upload_folder(self, **options):
            asked.append(options)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download, HfApi=Api))
    assert lma_torch.from_pretrained("org/r10@v1").name == "resnet10_lma"
    with pytest.raises(UserError, match=r"no folder org/absent, .* cannot be downloaded: no network"):
        lma_torch.from_pretrained("org/absent")
    with pytest.raises(UserError, match="no/such/thing is no folder, and no repository"):
        lma_torch.from_pretrained("no/such/thing")
    assert asked == [(("org/r10",), "v1"), (("org/absent",), None)]
    require_repository("org/r10")
    asked.clear()
    assert upload(folder, "org/r10") == f"{folder} uploaded to org/r10"
    assert asked == [
        (("org/r10",), {"exist_ok": True}),
        {"repo_id": "org/r10", "folder_path": folder, "allow_patterns": list(FILES)},
    ]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="--repo needs huggingface_hub: pip install huggingface_hub"):
        require_repository("org/r10")


def test_torch_hub_has_every_network(folder):
    entry_points = runpy.run_path(str(ROOT / "hubconf.py"))
    assert all("create_model" in entry_points[name].__doc__ for name in lma_torch.list_models())
    options: dict = dict(source="local", width=4, stem="small")
    model = torch.hub.load(str(ROOT), "resnet18_lma", num_classes=10, **options)
    assert isinstance(model, lma_torch.ResNet)
    assert model.fc.out_features == 10
    assert model.name == "resnet18_lma"
    with pytest.raises(ValueError, match="do not fit the model"):
        torch.hub.load(str(ROOT), "resnet18_lma", weights=folder, **options)


def test_class_names_are_written_beside_an_export_and_replace_only_themselves(tmp_path):
    checkpoint = Checkpoint(1, {}, Metadata("resnet18", 3, NAMES, config={}))
    path = tmp_path / "labels.txt"
    for _ in range(2):
        assert export_labels(checkpoint, path, force=False) == f"3 class names written to {path}"
    assert path.read_text() == "cat\ndog\ngrey wolf\n"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"--labels=.* exists and is no file of this kind"):
        export_labels(checkpoint, path, force=False)
    export_labels(checkpoint, path, force=True)
    with pytest.raises(UserError, match="does not know the names of its classes"):
        export_labels(Checkpoint(1, {}, Metadata("resnet18", 3, None, config={})), path, force=True)


@pytest.mark.process
def test_pytorch_alone_is_enough(tmp_path):
    code = (
        "from tests.helpers.extras import Hider; Hider({'torch'}).hide()\n"
        "import sys, lma_torch\n"
        "model = lma_torch.create_model('resnet18_lma', width=4, num_classes=2)\n"
        f"lma_torch.save_pretrained(model, {str(tmp_path)!r})\n"
        f"assert lma_torch.from_pretrained({str(tmp_path)!r}).name == 'resnet18_lma'\n"
        "assert 'jax' not in sys.modules\n"
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
