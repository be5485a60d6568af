"""The names of other libraries: written out, both ways for every network, refused where there are none; and the real
libraries, where they are installed."""

import numpy as np
import pytest
import torch
from flax import nnx

import convert
import lma_jax
import lma_torch
from lma_jax.errors import UserError
from lma_jax.naming import to_names, to_own_names
from lma_jax.weight_files import open_weights, read_weights, to_array, write_weights
from lma_torch.attention import ATTENTIONS, Placement
from lma_torch.attention.channel import SE
from lma_torch.attention.mixed import CBAM
from lma_torch.registry import parts_of, placement_of
from tests.helpers.arrays import normal, relative_error
from tests.helpers.pairs import golden_pair
from tests.helpers.shapes import torch_shapes
from tests.helpers.weights import well_conditioned_weights

# timm's names of some layers, as its models print them.
TIMM = {
    "resnet50_lma": {
        "conv1.weight": "conv1.weight",
        "layer3.5.bn3.running_var": "layer3.5.bn3.running_var",
        "layer3.5.attention.conv_h.weight": "layer3.5.se.conv_h.weight",
        "fc.bias": "fc.bias",
    },
    "mobilenetv2": {
        "features.0.0.weight": "conv_stem.weight",
        "features.0.1.running_mean": "bn1.running_mean",
        "features.1.conv.0.0.weight": "blocks.0.0.conv_dw.weight",
        "features.1.conv.1.weight": "blocks.0.0.conv_pw.weight",
        "features.1.conv.2.bias": "blocks.0.0.bn2.bias",
        "features.2.conv.0.0.weight": "blocks.1.0.conv_pw.weight",
        "features.7.conv.1.0.weight": "blocks.3.0.conv_dw.weight",
        "features.10.conv.2.weight": "blocks.3.3.conv_pwl.weight",
        "features.17.conv.3.num_batches_tracked": "blocks.6.0.bn3.num_batches_tracked",
        "features.18.0.weight": "conv_head.weight",
        "features.18.1.weight": "bn2.weight",
        "classifier.1.bias": "classifier.bias",
    },
    "mobilenetv2_lma": {
        "features.1.conv.2.weight": "blocks.0.0.bn2.weight",
        "features.3.conv.2.conv_w.weight": "blocks.1.1.se.conv_w.weight",
        "features.3.conv.3.weight": "blocks.1.1.conv_pwl.weight",
        "features.3.conv.4.bias": "blocks.1.1.bn3.bias",
    },
}
REFUSED = {
    ("resnet18_simam", "timm"): "no attention module before a normalisation",
    ("mobilenetv2_simam", "timm"): "no attention module before a normalisation",
    ("resnet18_bam", "timm"): "no attention module between two stages",
    ("resnet18_gsop", "timm"): "in every block or in none",
    ("mobilenetv2_eca", "timm"): "no attention module after the last normalisation",
    ("resnet18_lma", "torchvision"): "torchvision has no network with attention",
    ("mobilenetv2_simam", "torchvision"): "torchvision has no network with attention",
    ("resnet18_se", "paper"): "for plain networks and for those with LMA only",
    ("resnet18_simam", "paper"): "for plain networks and for those with LMA only",
    ("mobilenetv2_ca", "paper"): "for plain networks and for those with LMA only",
    ("resnet18", "tim"): "names must be one of timm, torchvision, paper, not 'tim'",
}


def renamed(name: str, names: str = "timm") -> tuple[dict, dict]:
    """The entries of a network, of shapes without values, and the same in other names."""
    model = torch_shapes(name)
    return model.state_dict(), to_names(model.state_dict(), names, position=model.position)


@pytest.mark.parametrize("name", TIMM)
def test_names_are_those_of_timm(name):
    own, timm = renamed(name)
    assert dict(zip(own, timm)).items() >= TIMM[name].items()
    assert all(own[a].shape == timm[b].shape for a, b in zip(own, timm))


def test_the_modules_that_timm_has_too_take_its_shapes():
    for name, entries in (("resnet18_se", ("fc1.weight", "fc2.weight")), ("resnet18_eca", ("conv.weight",))):
        own, timm = renamed(name)
        for entry in entries:
            shape = tuple(own[f"layer2.1.attention.{entry}"].shape)
            expected = shape[1:] if name.endswith("eca") else (*shape, 1, 1)
            assert tuple(timm[f"layer2.1.se.{entry}"].shape) == expected


@pytest.mark.parametrize("name", ["resnet18", *(f"resnet18_{kind}" for kind in ATTENTIONS), *TIMM, "mobilenetv2_ca"])
def test_names_lead_back(name):
    if (name, "timm") in REFUSED:
        return
    own, timm = renamed(name)
    back = to_own_names(timm)
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in own.items()}
    assert {key: value.shape for key, value in to_own_names(own).items()} == {k: v.shape for k, v in own.items()}


@pytest.mark.parametrize(("name", "names"), REFUSED)
def test_what_has_no_such_names_is_refused(name, names):
    with pytest.raises(UserError, match=REFUSED[name, names]):
        renamed(name, names)


@pytest.mark.parametrize("names", ["timm", "torchvision", "paper"])
def test_a_stem_that_a_library_does_not_have_is_refused(names):
    for options, shown in ((dict(stem="small"), "3 x 3 to 64"), (dict(width=8), "7 x 7 to 8")):
        model = torch_shapes("resnet18", **options)
        with pytest.raises(UserError, match=f"has no ResNet whose first convolution is {shown} channels"):
            to_names(model.state_dict(), names, position="")


@pytest.mark.parametrize("names", ["paper", "torchvision"])
def test_other_names_are_those_of_this_project(names):
    own, other = renamed("resnet50_lma" if names == "paper" else "mobilenetv2", names)
    assert list(other) == list(own)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_with_timms_names_is_read_as_a_state_dict_of_them_is(suffix, tmp_path):
    jax_model, _ = golden_pair("resnet18_se", num_classes=3)
    own, timm = convert.to_torch(jax_model), convert.to_torch(jax_model, names="timm")
    assert timm["layer1.0.se.fc1.weight"].shape == (4, 64, 1, 1)
    arrays = {key: to_array(value) for key, value in timm.items()}
    write_weights(tmp_path / f"weights{suffix}", arrays, {"names": "timm"})
    assert open_weights(tmp_path / f"weights{suffix}").metadata == {"names": "timm"}
    read, _ = read_weights(tmp_path / f"weights{suffix}")
    assert read.keys() == own.keys()
    assert all(np.array_equal(read[key], own[key].numpy()) for key in own)
    filled = convert.to_jax({f"module.{key}": value + 1 for key, value in timm.items()}, jax_model)
    assert torch.equal(convert.to_torch(filled)["fc.weight"], own["fc.weight"] + 1)


def test_only_networks_have_other_names():
    with pytest.raises(UserError, match="no names for a LMA, only for networks"):
        convert.to_torch(lma_jax.LMA(8, rngs=nnx.Rngs(0)), names="timm")


# timm's builder of networks from rows such as those of MobileNetV2; "se0.25" is where the attention sits.
ROWS = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r3_k3_s2_e6_c32_se0.25",
    "ir_r4_k3_s2_e6_c64_se0.25",
    "ir_r3_k3_s1_e6_c96_se0.25",
    "ir_r3_k3_s2_e6_c160_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)


def in_timm(name: str) -> torch.nn.Module:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    backbone, attention = parts_of(name)
    layers = {"lma": lma_torch.LMA, "cbam": CBAM, "se": "se", "eca": "eca"}
    if backbone.startswith("resnet"):
        return timm.create_model(backbone, block_args=dict(attn_layer=layers[attention]) if attention else {})
    if not attention:
        return timm.create_model("mobilenetv2_100")
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    blocks = decode_arch_def([[row] for row in ROWS])
    return EfficientNet(blocks, stem_size=32, act_layer=torch.nn.ReLU6, se_layer=layers[attention])


def in_torchvision(name: str) -> torch.nn.Module:
    models = pytest.importorskip("torchvision", exc_type=ImportError).models
    return {"resnet18": models.resnet18, "mobilenetv2": models.mobilenet_v2}[name]()


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "build"),
    [
        *((name, in_timm) for name in ("resnet18", "resnet50_se", "resnet18_eca", "resnet18_lma", "resnet18_cbam")),
        *((name, in_timm) for name in ("mobilenetv2", "mobilenetv2_lma")),
        *((name, in_torchvision) for name in ("resnet18", "mobilenetv2")),
    ],
)
def test_the_library_loads_them_strictly_and_computes_the_same(name, build):
    other = build(name).double().eval()
    model = lma_torch.create_model(name, dtype=torch.float64).eval()
    model.load_state_dict(well_conditioned_weights(model, normal(2, 3, 64, 64)))
    model.eval()
    own = model.state_dict()
    other.load_state_dict(to_names(own, build.__name__.removeprefix("in_"), position=model.position), strict=True)
    images = torch.from_numpy(normal(2, 3, 64, 64, seed=1))
    with torch.no_grad():
        assert relative_error(other(images), model(images)) < 1e-12
    back = to_own_names(other.state_dict())
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)


@pytest.mark.deep
def test_every_attention_module_is_a_layer_of_timms_blocks():
    timm = pytest.importorskip("timm", exc_type=ImportError)
    for kind in (lma_torch.LMA, SE, CBAM):
        model = timm.create_model("efficientnet_b0", se_layer=kind).eval()
        assert isinstance(model.blocks[2][1].se, kind)
        assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_what_timms_blocks_pass_to_attention_layers_is_taken():
    for name in ATTENTIONS:
        placement = placement_of("resnet18", name)
        assert isinstance(placement, Placement)
        assert placement.module is not None
        layer = placement.module(256, act_layer=torch.nn.SiLU, device="meta", dtype=torch.float64)
        assert all(weight.is_meta and weight.dtype == torch.float64 for weight in layer.parameters())
