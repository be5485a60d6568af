"""Class activation maps and gates, and the command that draws them."""

import re
from operator import attrgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_images

import convert
import lma_jax
from configs import digits
from lma_jax import gradcam
from lma_jax.cam import activation_map, gates, grad_cam, grad_cam_plus_plus, lma_layers, scale_and_resize
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.definition import split
from lma_jax.errors import UserError
from lma_jax.training.state import TrainState
from tests.helpers.arrays import normal, relative_error, to_nchw, to_nhwc
from tests.helpers.commands import fail, run
from tests.helpers.shapes import jax_shapes, torch_shapes
from tests.helpers.weights import golden_weights

GOLDEN = {"resnet18_lma": "resnet18", "mobilenetv2_lma": "mobilenet_v2"}
LAST_BLOCK = {"resnet18_lma": "layer4.1", "mobilenetv2_lma": "features.18"}


@pytest.fixture(scope="module")
def networks() -> dict[str, nnx.Module]:
    """LMA networks with the golden weights, in float64."""
    with jax.enable_x64(True):
        shapes = {name: jax_shapes(name, num_classes=37, param_dtype=jnp.float64) for name in GOLDEN}
        weights = {name: golden_weights(torch_shapes(name, num_classes=37)) for name in GOLDEN}
        return {name: convert.to_jax(weights[name], shapes[name]) for name in GOLDEN}


class Linear(nnx.Module):
    """A feature map of six channels, averaged and classified."""

    def __init__(self, **dd):
        options = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0)) | dd
        self.conv = lma_jax.layers.conv(3, 6, 3, **options)
        self.fc = nnx.Linear(6, 4, **options)

    def forward_features(self, x):
        return self.conv(x)

    def forward_head(self, x):
        return self.fc(x.mean((1, 2)))

    def __call__(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("name", GOLDEN)
def test_grad_cam_plus_plus_is_that_of_pytorch_grad_cam(networks, x64, name):
    model, images = networks[name], to_nhwc(normal(2, 3, 128, 160))
    with np.load(Path(__file__).parent.parent / "golden/gradcam_plusplus.npz") as arrays:
        class_id, raw, resized = (arrays[f"{GOLDEN[name]}/{k}"] for k in ("class", "raw_map", "map_0_1_input_size"))
    maps, logits = activation_map(model, images, class_id)
    assert maps.dtype == logits.dtype == jnp.float64
    assert relative_error(maps, raw) <= 1e-9
    assert relative_error(grad_cam_plus_plus(model, images, class_id), resized) <= 1e-6
    by_name, _ = activation_map(model, images, class_id, layer=LAST_BLOCK[name])
    assert relative_error(by_name, raw) <= 1e-9


def test_of_a_pooled_linear_classifier_grad_cam_is_cam(x64):
    model, images, class_ids = Linear(), to_nhwc(normal(3, 3, 5, 7)), jnp.array([2, 0, 3])
    cam = nnx.relu(jnp.einsum("nhwc,cn->nhw", model.conv(images), model.fc.kernel[:, class_ids])) / (5 * 7)
    maps, logits = activation_map(model, images, class_ids, method="gradcam")
    assert relative_error(maps, cam) <= 1e-12
    assert relative_error(logits, model(images)) <= 1e-12
    np.testing.assert_array_equal(grad_cam(model, images, class_ids), scale_and_resize(maps, (5, 7)))


def test_of_a_pooled_linear_classifier_grad_cam_plus_plus_has_a_closed_form(x64):
    model, images = Linear(), to_nhwc(normal(2, 3, 5, 7))
    features, gradient = np.asarray(model.conv(images)), np.asarray(model.fc.kernel[:, 1]) / 35
    total = features.sum((1, 2))
    alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + 1e-6)
    weights = 35 * np.maximum(gradient, 0) * alpha
    expected = np.maximum(np.einsum("nhwc,nc->nhw", features, weights), 0)
    maps, _ = activation_map(model, images, 1)
    assert relative_error(maps, expected) <= 1e-12


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("resnet18_lma", "layer4.0.attention", (2, 3, 512)),
        ("mobilenetv2_lma", "features.17", (2, 3, 320)),
    ],
)
def test_an_inner_layer_is_weighed_by_the_gradient_of_the_rest_and_the_model_left_as_it_is(
    networks, x64, name, layer, size
):
    """The mean gradient is also that of an offset which all pixels of a channel share."""
    images = to_nhwc(normal(2, 3, 64, 96))
    networks[name].train()
    graphdef, state = nnx.split(networks[name])
    before = jax.tree.map(np.array, state)
    maps, logits = activation_map(networks[name], images, layer=layer, method="gradcam")
    assert nnx.graphdef(networks[name]) == graphdef
    jax.tree.map(np.testing.assert_array_equal, nnx.state(networks[name]), before)
    path, _, last = layer.rpartition(".")

    @jax.jit
    def gradient_and_activations(state):
        model = nnx.merge(graphdef, state)
        model.eval()
        parent = attrgetter(path)(model) if path else model
        module, passing = getattr(parent, last), {}

        def shifted(x):
            passing["activations"] = module(x)
            return passing["activations"] + passing["offset"]

        def scores(offset):
            passing["offset"] = offset
            return model(images)[jnp.arange(2), logits.argmax(-1)], passing["activations"]

        setattr(parent, last, shifted)
        return jax.jacrev(scores, has_aux=True)(jnp.zeros(size[-1]))

    gradient, activations = gradient_and_activations(state)
    expected = nnx.relu(jnp.einsum("nhwc,nc->nhw", activations, gradient)) / (size[0] * size[1])
    assert maps.shape == (2, *size[:2])
    assert relative_error(maps, expected) <= 1e-9


def test_a_map_does_not_depend_on_the_batch(networks, x64):
    model, images = networks["resnet18_lma"], to_nhwc(normal(2, 3, 64, 96))
    maps, _ = activation_map(model, images, [5, 1])
    alone, _ = activation_map(model, images[1:], 1)
    assert relative_error(alone, maps[1:]) <= 1e-12


def test_the_default_class_is_the_top_one(networks, x64):
    model, images = networks["resnet18_lma"], to_nhwc(normal(2, 3, 64, 96))
    maps, logits = activation_map(model, images)
    named, _ = activation_map(model, images, logits.argmax(-1))
    np.testing.assert_array_equal(maps, named)
    other, _ = activation_map(model, images, (logits.argmax(-1) + 1) % 37)
    assert relative_error(other, maps) > 0.01


def test_maps_lie_between_0_and_1_also_in_bfloat16_and_of_one_pixel():
    model = Linear(dtype=jnp.bfloat16, param_dtype=jnp.float32)
    maps = grad_cam_plus_plus(model, jnp.asarray(to_nhwc(normal(2, 3, 6, 8)), jnp.float32))
    assert maps.shape == (2, 6, 8)
    assert maps.dtype == jnp.float32
    np.testing.assert_array_equal(maps.min((1, 2)), 0)
    np.testing.assert_allclose(maps.max((1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(scale_and_resize(jnp.full((2, 1, 1), 3.0), (8, 9)), np.zeros((2, 8, 9)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(layer="layer5"), "no layer 'layer5', did you mean 'layer"),
        (dict(layer="layer4.7"), "no layer 'layer4.7', did you mean 'layer4"),
        (dict(layer=""), "no layer ''"),
        (dict(layer="fc"), "layer 'fc' gives no feature map"),
        (dict(class_ids=37), "class_ids must be in 0 to 36"),
        (dict(class_ids=[0, -1]), "class_ids must be in 0 to 36"),
        (dict(class_ids=[0, 1, 2]), "class_ids must be an integer or 2 of them, got [0 1 2]"),
        (dict(class_ids=0.5), "class_ids must be an integer"),
        (dict(method="gradcamm"), "unknown method 'gradcamm', did you mean 'gradcam'?"),
        (dict(images=np.zeros((2, 32, 32, 3), np.uint8)), "images must be floating-point (N, H, W, 3), got uint8"),
        (dict(images=np.zeros((32, 32, 3))), "images must be floating-point (N, H, W, 3)"),
    ],
)
def test_mistakes_are_named(networks, x64, options, expected):
    arguments = {"images": to_nhwc(normal(2, 3, 32, 32)), **options}
    with pytest.raises(ValueError) as error:
        activation_map(networks["resnet18_lma"], **arguments)
    assert expected in str(error.value)


def test_a_network_without_a_head_needs_a_layer():
    class Headless(nnx.Module):
        pass

    with pytest.raises(ValueError, match="Headless has no forward_features and forward_head: name a layer"):
        activation_map(Headless(), jnp.zeros((1, 8, 8, 3)))


def test_gates_are_those_that_the_layer_applies_in_both_frameworks(networks, x64):
    images, layer = normal(2, 3, 64, 96), "layer2.1.attention"
    assert lma_layers(networks["resnet18_lma"])[::3] == ["layer1.0.attention", layer, "layer4.0.attention"]
    twin = torch_shapes("resnet18_lma", num_classes=37, dtype=torch.float64)
    twin.load_state_dict(golden_weights(twin), assign=True)
    passed = []
    twin.get_submodule(layer).register_forward_hook(lambda module, inputs, output: passed.extend([*inputs, output]))
    with torch.no_grad():
        twin.eval()(torch.from_numpy(images))
        x, y = passed
        expected = twin.get_submodule(layer).gates(x)
    found = gates(networks["resnet18_lma"], to_nhwc(images), [layer])[layer]
    assert [relative_error(to_nchw(gate), other) <= 1e-9 for gate, other in zip(found, expected)] == [True, True]
    assert relative_error(x * expected[0] * expected[1], y) <= 1e-12
    with pytest.raises(ValueError, match=r"no LMA layer 'layer2.1', did you mean 'layer2.1.attention'"):
        gates(networks["resnet18_lma"], to_nhwc(images), ["layer2.1"])


def save_run(workdir: Path, model: str) -> Path:
    """What a training run on two classes of 64 x 64 pixels leaves, with random weights."""
    config = digits.get_config()
    config.update(model=model)
    _, params, batch_stats = split(nnx.jit(lambda: lma_jax.create_model(model, num_classes=3, rngs=nnx.Rngs(0)))())
    preprocessing = dict(image_size=64, resize_size=72, mean=(0.5,) * 3, std=(0.5,) * 3)
    metadata = dict(model=model, num_classes=3, preprocessing=preprocessing, config=config.to_dict(), metrics={})
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(7), params, batch_stats, ()), metadata, top1=0.0)
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folders `lma` and `plain` of two runs, and `photos` with two photographs."""
    root = tmp_path_factory.mktemp("runs")
    save_run(root / "lma", "resnet18_lma")
    save_run(root / "plain", "resnet18")
    (root / "photos").mkdir()
    for number, photograph in enumerate(load_sample_images().images):
        Image.fromarray(photograph).save(root / f"photos/{number}.jpg")
    return root


@pytest.fixture
def draw(runs, tmp_path, capsys):
    """Runs the command in this process, on {runs} and into {tmp}, and returns what it printed."""

    def draw(**options) -> str:
        options = {"checkpoint": "{runs}/lma", "image": "{runs}/photos", "output": "{tmp}/cam.png", **options}
        places = dict(runs=runs, tmp=tmp_path)
        values = {name: v.format(**places) if isinstance(v, str) else v for name, v in options.items()}
        flags.FLAGS.mark_as_parsed()
        with flagsaver.flagsaver(**values):
            gradcam.main()
        return capsys.readouterr().out

    return draw


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_the_command_prints_classes_and_draws_the_photograph_beside_its_map(runs, tmp_path):
    arguments = [f"--checkpoint={runs}/lma", f"--image={runs}/photos/0.jpg", f"--output={tmp_path}/new/cam.png"]
    output = run("lma_jax.gradcam", *arguments, "--method=gradcam", "--class_id=2", "--top=2")
    assert re.fullmatch(r"0.jpg: (class \d \d+\.\d\d %(, )?){2}\n.*cam.png written\n", output)
    width, height = size_of(tmp_path / "new/cam.png")
    assert width > 1.5 * height
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cam.png"]


def test_a_folder_makes_a_contact_sheet(draw, tmp_path, monkeypatch):
    output = draw(layer=["layer2", "layer3.1"], output="{tmp}/sheet.pdf")
    assert re.findall(r"^(\d).jpg: .*class \d", output, re.MULTILINE) == ["0", "1"]
    assert (tmp_path / "sheet.pdf").read_bytes().startswith(b"%PDF")
    monkeypatch.setattr(gradcam, "MAX_IMAGES", 1)
    assert "photos holds 2 images, the first 1 are shown\n0.jpg: class" in draw(layer=["layer2", "layer3.1"])


def test_probabilities_are_those_of_the_loss():
    logits = np.log([3.0, 1.0, 4.0])
    assert gradcam._ranked(logits, "softmax") == [
        (2, pytest.approx(0.5)),
        (0, pytest.approx(0.375)),
        (1, pytest.approx(0.125)),
    ]
    assert gradcam._ranked(logits, "sigmoid") == [
        (2, pytest.approx(0.8)),
        (0, pytest.approx(0.75)),
        (1, pytest.approx(0.5)),
    ]


def test_gates_are_drawn(draw, tmp_path):
    draw(gates=True, image="{runs}/photos/1.jpg")
    draw(gates=True, image="{runs}/photos/1.jpg", output="{tmp}/one.png", layer=["layer2.0.attention"])
    (width, height), one = size_of(tmp_path / "cam.png"), size_of(tmp_path / "one.png")
    assert (width, height) == (2 * one[0], 2 * one[1] - 75)


def test_a_map_of_one_pixel_is_pointed_out(draw, monkeypatch):
    monkeypatch.setattr("lma_jax.images.read_image", lambda *_: np.zeros((32, 32, 3), np.uint8))
    assert "warning: the map of the last layer is one pixel: name an earlier --layer" in draw(
        image="{runs}/photos/0.jpg"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(image="{tmp}/cat.jpg"), "cat.jpg does not exist"),
        (dict(image="{tmp}/folder.png"), "holds no images (.jpg"),
        (dict(image="{tmp}/notes.txt"), "notes.txt is no image that can be decoded"),
        (dict(image="{tmp}/cut"), "0.jpg is no image that can be decoded"),
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
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/0.jpg").write_bytes((runs / "photos/0.jpg").read_bytes()[:5000])
    with pytest.raises(UserError) as error:
        draw(**options)
    assert expected in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "folder.png", "notes.txt"]


def test_a_mistake_is_one_line_on_stderr():
    assert "--top=0" in fail("lma_jax.gradcam", "--checkpoint=x", "--image=x", "--output=x.png", "--top=0")
