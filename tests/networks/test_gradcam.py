"""The command that draws class activation maps and gates."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images

import lma_jax
from configs import digits
from lma_jax import cam, figures, gradcam, predict
from lma_jax.checkpoint.format import Metadata, load_checkpoint
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.checkpoint.restore import restore_model
from lma_jax.definition import split
from lma_jax.errors import UserError
from lma_jax.images import read_image
from lma_jax.preprocessing import Preprocessing, normalize
from tests.helpers.commands import fail, run
from tests.helpers.pairs import know_resnet10, register_resnet10
from tests.helpers.shapes import jax_shapes

pytestmark = pytest.mark.deep

NAMES = ("cat", "dog", "great auk")
PREPROCESSING = Preprocessing(image_size=64, resize_size=72, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def save_run(workdir: Path, model: str, **values) -> None:
    """What a training run on three classes of 64 x 64 pixels leaves, with random weights."""
    config = digits.get_config()
    config.update(model=model, image_size=64, resize_size=72, mean=(0.5,) * 3, std=(0.5,) * 3)
    _, params, batch_stats = split(nnx.jit(lambda: lma_jax.create_model(model, num_classes=3, rngs=nnx.Rngs(0)))())
    metadata = Metadata(**{**dict(model=model, num_classes=3, class_names=NAMES, config=config.to_dict()), **values})
    with Checkpoints(workdir, keep=1) as checkpoints:
        state = {"step": jnp.int32(7), "params": params, "batch_stats": batch_stats}
        checkpoints.save(state, metadata, top1=0.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folders `lma` and `plain` of two runs, and `photos` with two photographs."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        register_resnet10(patch)
        save_run(root / "lma", "resnet10_lma")
        save_run(root / "plain", "resnet10", class_names=None)
    (root / "photos").mkdir()
    for number, photograph in enumerate(load_sample_images().images):
        Image.fromarray(photograph).save(root / f"photos/{number}.jpg")
    return root


@pytest.fixture
def draw(runs, tmp_path, capsys, monkeypatch):
    """Runs the command in this process, on {runs} and into {tmp}, and returns what it printed."""
    defaults = dict(step="newest", method="gradcam++", layer=None, class_id=None, top=5, gates=False, force=False)
    defaults |= dict(checkpoint="{runs}/lma", image="{runs}/photos", output="{tmp}/cam.png")
    register_resnet10(monkeypatch)

    def draw(**options) -> str:
        folders = dict(runs=runs, tmp=tmp_path)
        options = {**defaults, **options}
        values = {name: v.format(**folders) if isinstance(v, str) else v for name, v in options.items()}
        monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(**values))
        gradcam.main()
        return capsys.readouterr().out

    return draw


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.process
def test_the_command_prints_classes_and_draws_the_photograph_beside_its_map(runs, tmp_path):
    arguments = [f"--checkpoint={runs}/lma", f"--image={runs}/photos/0.jpg", f"--output={tmp_path}/new/cam.png"]
    options = "--method=gradcam", "--class_id=2", "--top=2"
    output = run("lma_jax.gradcam", *arguments, *options, setup=know_resnet10)
    assert re.fullmatch(r"0.jpg: ((cat|dog|great auk) \d+\.\d\d %(, )?){2}\n.*cam.png written\n", output)
    width, height = size_of(tmp_path / "new/cam.png")
    assert width > 1.5 * height
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cam.png"]


def test_a_folder_makes_a_contact_sheet(draw, tmp_path, monkeypatch):
    output = draw(layer=["layer2", "layer3.0"], output="{tmp}/sheet.pdf")
    assert re.findall(r"^(\d).jpg: .*great auk", output, re.MULTILINE) == ["0", "1"]
    assert (tmp_path / "sheet.pdf").read_bytes().startswith(b"%PDF")
    monkeypatch.setattr(gradcam, "MAX_IMAGES", 1)
    output = draw(layer=["layer2", "layer3.0"], checkpoint="{runs}/plain")
    assert "photos holds 2 images, the first 1 are shown\n0.jpg: class " in output


def test_the_caption_of_a_map_names_its_class(draw, monkeypatch):
    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append(figure))
    draw(image="{runs}/photos/0.jpg", layer=["layer2"], class_id=1)
    captions = [axes.get_title() for axes in saved[0].axes]
    assert captions[0] == "0.jpg"
    assert re.fullmatch(r"layer2, dog, \d+\.\d %", captions[1])


@pytest.mark.parametrize("name", ["$\\frac$.png", "\udcff\n.png", "\u65e5\u672c.png", "\x01.png"])
def test_any_name_of_an_image_can_be_drawn(tmp_path, name):
    tiles = [figures.Tile(np.zeros((8, 8, 3), np.uint8), None, name)]
    figures.save(figures._draw_sheet(tiles, "title", strip=1, label="label"), tmp_path / "cam.png")
    assert (tmp_path / "cam.png").is_file()


def test_probabilities_are_those_of_the_loss():
    logits = np.log([3.0, 1.0, 4.0])
    assert figures.ranked_classes(logits, "softmax") == [
        (2, pytest.approx(0.5)),
        (0, pytest.approx(0.375)),
        (1, pytest.approx(0.125)),
    ]
    assert figures.ranked_classes(logits, "sigmoid") == [
        (2, pytest.approx(0.8)),
        (0, pytest.approx(0.75)),
        (1, pytest.approx(0.5)),
    ]


def test_gates_are_drawn(draw, tmp_path):
    draw(gates=True, image="{runs}/photos/1.jpg")
    draw(gates=True, image="{runs}/photos/1.jpg", output="{tmp}/one.png", layer=["layer2.0.attention"])
    (width, height), one = size_of(tmp_path / "cam.png"), size_of(tmp_path / "one.png")
    assert (width, height) == (2 * one[0], 2 * one[1] - 75)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_an_own_picture_is_replaced_and_any_other_kept(draw, tmp_path, suffix, monkeypatch):
    output, picture = tmp_path / f"cam.{suffix}", Figure()
    monkeypatch.setattr(figures, "draw_maps", lambda *arguments, **options: picture)
    options: dict[str, Any] = dict(image="{runs}/photos/0.jpg", output=str(output))
    draw(**options)
    draw(**options)
    picture.savefig(output)
    with pytest.raises(UserError, match="exists and is no file of this kind"):
        draw(**options)
    draw(**options, force=True)
    draw(**options)


def test_an_image_is_not_overwritten_by_its_picture(draw, runs, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("0.png", "1.png"):
        Image.open(runs / "photos/0.jpg").save(tmp_path / "photos" / name)
    (tmp_path / "link.png").symlink_to("photos/1.png")
    for image, output in (("photos/0.png", "photos/0.png"), ("photos", "photos/1.png"), ("photos", "link.png")):
        with pytest.raises(UserError, match="is an input of this command"):
            draw(image=f"{{tmp}}/{image}", output=f"{{tmp}}/{output}", force=True)


def test_predictions_are_printed_written_and_drawn_and_undecodable_files_are_left_out(
    runs, tmp_path, capsys, monkeypatch
):
    register_resnet10(monkeypatch)
    monkeypatch.setattr(predict, "BATCH_SIZE", 2)
    shutil.copytree(runs / "photos", tmp_path / "photos/more")
    (tmp_path / "photos/1.jpg").write_bytes(b"broken")
    shutil.copy(runs / "photos/0.jpg", tmp_path / "photos/2.jpg")
    names = {kind: str(tmp_path / f"out.{kind}") for kind in ("json", "csv")}
    options = dict(
        checkpoint=f"{runs}/lma",
        image=f"{tmp_path}/photos",
        step="newest",
        top=2,
        output=f"{tmp_path}/a.png",
        force=False,
    )
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(**options, **names))
    predict.main()
    printed = capsys.readouterr()
    assert re.findall(r"^(\S+): (?:cat|dog|great auk) ", printed.out, re.MULTILINE) == [
        "2.jpg",
        "more/0.jpg",
        "more/1.jpg",
    ]
    assert re.fullmatch("warning: .*photos/1.jpg cannot be decoded as an image .*\n", printed.err)
    rows = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [(row["image"], row["rank"]) for row in rows[:3]] == [("2.jpg", 1), ("2.jpg", 2), ("more/0.jpg", 1)]
    pair = restore_model(load_checkpoint(runs / "lma"))
    pair.eval()
    image = read_image(runs / "photos/0.jpg", PREPROCESSING)
    logits = np.asarray(pair(normalize(jnp.asarray(image[None]), PREPROCESSING)))[0]
    best = int(logits.argmax())
    for row in (rows[0], rows[2]):
        assert (row["class_id"], row["name"]) == (best, NAMES[best])
        assert row["probability"] == pytest.approx(float(np.exp(logits[best]) / np.exp(logits).sum()), rel=1e-5)
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("2.jpg,1,")
    assert size_of(tmp_path / "a.png")[0] > 100


def test_a_map_of_one_pixel_is_pointed_out(draw, monkeypatch):
    monkeypatch.setattr("lma_jax.images.read_image", lambda *_: np.zeros((32, 32, 3), np.uint8))
    assert "warning: the map of layer4 is one pixel: name an earlier --layer" in draw(
        image="{runs}/photos/0.jpg", layer=["layer4"]
    )


def test_an_earlier_map_stands_for_a_last_one_of_one_pixel():
    model = jax_shapes("resnet18", width=4)
    for size, layer in ((33, None), (32, "layer2"), (20, "layer1"), (8, "bn1"), (6, None)):
        assert cam.earlier_layer(model, jnp.ones((1, size, size, 3))) == layer


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(image="{tmp}/cat.jpg"), "cat.jpg does not exist"),
        (dict(image="{tmp}/folder.png"), "holds no images (.jpg"),
        (dict(image="{tmp}/notes.txt"), "notes.txt cannot be decoded as an image (not an image file)"),
        (dict(image="{tmp}/cut/0.jpg"), "0.jpg cannot be decoded as an image"),
        (dict(image="{tmp}/cut"), "cut can be decoded"),
        (dict(image="{tmp}/single"), "single/0.jpg cannot be decoded as an image"),
        (dict(checkpoint="{tmp}"), "holds no checkpoint"),
        (dict(step="8"), "holds no checkpoint '8'"),
        (dict(class_id=3), "--class_id=3: the network's classes are 0 to 2"),
        (dict(layer=["layr4"]), "no layer 'layr4', did you mean 'layer4'?"),
        (dict(layer=["fc"]), "layer 'fc' gives no feature map"),
        (dict(output="{tmp}/cam.gif"), "cam.gif must end in .png, .pdf, .svg"),
        (dict(output="{tmp}/notes.txt/cam.png"), "cannot write"),
        (dict(output="{tmp}/folder.png"), "cannot write"),
        (dict(gates=True), "--gates takes one image file"),
        (dict(gates=True, image="{runs}/photos/0.jpg", class_id=1), "and no --class_id"),
        (dict(gates=True, image="{runs}/photos/0.jpg", checkpoint="{runs}/plain"), "the network has no LMA layers"),
        (
            dict(gates=True, image="{runs}/photos/0.jpg", layer=["layer4"]),
            "no LMA layer 'layer4', did you",
        ),
    ],
)
def test_every_mistake_is_a_user_error_that_leaves_nothing_behind(draw, runs, tmp_path, options, expected):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    for name in ("cut/0.jpg", "cut/1.jpg", "single/0.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((runs / "photos/0.jpg").read_bytes()[:5000])
    with pytest.raises(UserError) as error:
        draw(**options)
    assert expected in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "folder.png", "notes.txt", "single"]


@pytest.mark.process
def test_a_mistake_is_one_line_on_stderr():
    assert "--top=0" in fail("lma_jax.gradcam", "--checkpoint=x", "--image=x", "--output=x.png", "--top=0")
