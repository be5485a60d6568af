"""Where a run starts from: another run's weights, PyTorch's, or a plain network with LMA grafted on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import lma_torch
from lma_jax.checkpoint.format import Metadata
from lma_jax.checkpoint.manager import Checkpoints
from lma_jax.errors import UserError
from lma_jax.registry import BACKBONES
from lma_jax.training.graft import graft_lma
from lma_jax.training.initial import load_initial
from lma_jax.training.state import TrainState
from lma_jax.weight_files import write_weights
from tests.helpers import tiny
from tests.helpers.arrays import normal, to_nhwc
from tests.helpers.pairs import register_resnet10
from tests.helpers.shapes import jax_shapes, narrow_options, torch_shapes
from tests.helpers.tiny import Trial
from tests.helpers.weights import golden_weights

pytestmark = pytest.mark.deep


def filled(name: str, *, seed: int = 0) -> nnx.Module:
    options = narrow_options(name)
    return convert.to_jax(golden_weights(torch_shapes(name, **options), seed=seed), jax_shapes(name, **options))


@pytest.mark.usefixtures("compile_each_layer_once")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_exact_warm_start_computes_what_the_plain_network_does(backbone):
    """To the last bit, in evaluation and in training mode: factors of 4 are exact."""
    plain = filled(backbone)
    grown = graft_lma(plain, filled(f"{backbone}_lma", seed=1))
    images = to_nhwc(normal(2, 3, 32, 32)).astype(jnp.float32)
    for mode in ("eval", "train"):
        for model in (plain, grown):
            getattr(model, mode)()
        np.testing.assert_array_equal(grown(images), plain(images))


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    tiny.register(monkeypatch)
    register_resnet10(monkeypatch)


def save_run(workdir, run: Trial, model: str, *, num_classes: int = 10) -> None:
    metadata = Metadata(model, num_classes, None, {}, {"val_top1": 1.0})
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(run.state, metadata, top1=1.0)


def arrays_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_equal_trees(actual, expected):
    assert str(jax.tree.structure(actual)) == str(jax.tree.structure(expected))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    source, run = Trial(seed=1), Trial()
    source.train(tiny.batch(0))
    save_run(tmp_path, source, "tiny_lma")
    state, said = load_initial(tiny.recipe(init_from=str(tmp_path)), run.state)
    assert_equal_trees((state.params, state.batch_stats), (source.state.params, source.state.batch_stats))
    assert_equal_trees(state.opt_state, run.state.opt_state)
    assert int(state.step) == 0
    assert said == f"weights of {tmp_path}"


def test_the_moving_average_is_taken_and_started_afresh(tmp_path):
    source = Trial(ema_decay=0.5)
    source.train(tiny.batch(0), tiny.batch(1))
    save_run(tmp_path, source, "tiny_lma")
    run = Trial(ema_decay=0.9)
    state, _ = load_initial(tiny.recipe(init_from=str(tmp_path)), run.state)
    assert_equal_trees(state.params, source.state.ema["params"])
    assert_equal_trees(state.ema, {"params": state.params, "batch_stats": state.batch_stats})
    run.state = state
    run.train(tiny.batch(2))  # the two copies do not share what the step donates


def test_another_class_count_gets_a_new_head(tmp_path):
    source, run = Trial(), Trial()
    source.train(tiny.batch(0))
    wide = np.zeros((8, 37), np.float32), np.zeros(37, np.float32)
    params = {**source.state.params, "fc": dict(zip(("kernel", "bias"), wide))}
    source.state = TrainState(source.state.step, params, source.state.batch_stats, source.state.opt_state)
    save_run(tmp_path, source, "tiny_lma", num_classes=37)
    state, said = load_initial(tiny.recipe(init_from=str(tmp_path)), run.state)
    assert_equal_trees(state.params["fc"], run.state.params["fc"])
    assert_equal_trees(state.params["conv1"], source.state.params["conv1"])
    assert said.endswith("with a new head of 10 classes")


def test_a_head_follows_the_names_of_its_classes(tmp_path):
    """Taken where they are the same or unknown, brought into order where that differs, new where the names do."""
    source, run = Trial(), Trial(seed=1)
    source.train(tiny.batch(0))
    names = tuple("abcdefghij")
    metadata = Metadata("tiny_lma", 10, names, {}, {"val_top1": 1.0})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(source.state, metadata, top1=1.0)

    def head(class_names) -> tuple[Any, str]:
        state, said = load_initial(tiny.recipe(init_from=str(tmp_path)), run.state, class_names=class_names)
        return state.params["fc"], said.partition(str(tmp_path))[2]

    trained = source.state.params["fc"]
    for unchanged in (names, None):
        kept, said = head(unchanged)
        assert_equal_trees(kept, trained)
        assert said == ""
    order = [3, 1, 2, 0, *range(4, 10)]
    permuted, said = head(tuple(names[index] for index in order))
    assert_equal_trees(permuted, jax.tree.map(lambda array: array[..., np.array(order)], trained))
    assert said == ", with its classes in the order of this data"
    fresh, said = head((*names[:-1], "z"))
    assert_equal_trees(fresh, run.state.params["fc"])
    assert said == ", with a new head of 10 classes"


def test_class_names_of_a_weights_file_are_used_if_they_are_names(tmp_path):
    weights = arrays_of(lma_torch.create_model("resnet10_lma", num_classes=10))
    run, names = Trial(model="resnet10_lma"), list("abcdefghij")
    for class_names, expected in ((names, "order of this data"), ([1, None], ""), ("abc", ""), (None, "")):
        write_weights(tmp_path / "run.safetensors", weights, {"class_names": class_names})
        config = tiny.recipe(model="resnet10_lma", init_from=str(tmp_path / "run.safetensors"))
        _, said = load_initial(config, run.state, class_names=names[::-1])
        assert said.endswith(expected or "safetensors")


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    save_run(tmp_path, Trial(model="tiny"), "tiny")
    with pytest.raises(UserError, match=r"is a tiny, but a tiny_lma is needed"):
        load_initial(tiny.recipe(init_from=str(tmp_path)), Trial().state)
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_initial(tiny.recipe(init_from=str(tmp_path / "nothing")), Trial().state)


def test_weights_of_another_stem_or_width_are_refused_with_what_to_add(tmp_path):
    plain = lma_torch.create_model("resnet10", num_classes=10, stem="small", width=6)
    lma_torch.save_pretrained(plain, tmp_path / "hub")  # whose folder is as good as its file
    config = tiny.recipe(model="resnet10_lma", init_from=str(tmp_path / "hub"), warm_start="exact")
    remedy = r"hub has stem='small', width=6, the config stem='imagenet', width=64: add --config.stem=small --config.wi"
    with pytest.raises(UserError, match=remedy):
        load_initial(config, Trial(model="resnet10_lma").state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_run_starts_from_a_file_of_plain_pytorch_weights(tmp_path, suffix):
    """As torchvision's: 1000 classes and no LMA."""
    plain = lma_torch.create_model("resnet10", num_classes=1000)
    write_weights(tmp_path / f"plain{suffix}", arrays_of(plain), {})
    config = tiny.recipe(model="resnet10_lma", init_from=str(tmp_path / f"plain{suffix}"), warm_start="exact")
    run = Trial(model="resnet10_lma")
    state, said = load_initial(config, run.state)
    assert "with LMA layers that leave its function unchanged, with a new head of 10 classes" in said
    model: Any = run.definition.bind(state.params, state.batch_stats)
    model.eval()
    plain.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = plain.forward_features(images).permute(0, 2, 3, 1).numpy()
    actual = model.forward_features(jnp.asarray(images.permute(0, 2, 3, 1).numpy()))
    np.testing.assert_allclose(actual, features, atol=1e-4 * np.abs(features).max())


def test_a_file_of_another_network_is_refused(tmp_path):
    write_weights(tmp_path / "plain.pth", arrays_of(lma_torch.create_model("resnet10")), {})
    with pytest.raises(UserError, match=r"plain.pth as weights of resnet10_lma: .*missing layer1.0.attention"):
        load_initial(tiny.recipe(model="resnet10_lma", init_from=str(tmp_path / "plain.pth")), Trial().state)
