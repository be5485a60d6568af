"""Networks are recognised by names and shapes, in the names of torchvision, the paper's authors and timm."""

from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lma_torch
from convert.recognition import recognise
from lma_jax.errors import UserError
from lma_jax.weight_files import read_weights, unwrap
from tests.helpers.shapes import jax_shapes, torch_shapes

BACKBONES = [name for name in lma_torch.list_models() if "_" not in name]
LMA_NETWORKS = [name for name in lma_torch.list_models() if name.endswith("_lma")]


@pytest.fixture(scope="module", autouse=True)
def each_network_is_built_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lma_torch, "create_model", cache(lma_torch.create_model))
        yield


def meta(name: str, **options) -> dict[str, torch.Tensor]:
    return torch_shapes(name, **options).state_dict()


def to_timm(state_dict):
    """In timm's ResNets, the attention of a block is called `se`."""
    return {key.replace(".attention.", ".se."): value for key, value in state_dict.items()}


@pytest.mark.parametrize("name", [*BACKBONES, *LMA_NETWORKS, "resnet50_se", "resnet18_bam", "mobilenetv2_cbam"])
@pytest.mark.parametrize("wrap", [lambda s: s, to_timm], ids=["torchvision's and the authors' names", "timm's"])
def test_every_network_is_recognised(name, wrap):
    state_dict = wrap(meta(name, num_classes=21))
    assert recognise(unwrap(state_dict)) == (name, {"num_classes": 21})
    assert recognise(unwrap(state_dict), name=name) == (name, {"num_classes": 21})


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18_lma", {"stem": "small", "width": 8}), *(("mobilenetv2", {"width_mult": w}) for w in (0.1, 0.35, 1.4))],
)
def test_stem_and_width_are_recognised(name, options):
    assert recognise(unwrap(meta(name, **options))) == (name, {"num_classes": 1000, **options})


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_differences_are_listed(backbone):
    state_dict = meta(f"{backbone}_lma")
    kernels = [key for key in state_dict if ".conv_h." in key or ".conv_w." in key]
    with pytest.raises(UserError) as error:
        recognise(state_dict, name=backbone)
    assert f"{len(kernels)} differences" in str(error.value) or backbone == "mobilenetv2"
    assert all(f"unexpected {kernel} " in str(error.value) for kernel in kernels)
    wrong = {**state_dict, "conv9.weight": torch.zeros(3), kernels[0]: torch.zeros(1, 1, 1, 9)}
    del wrong[kernels[1]]
    closest = rf"closest is {backbone}_lma, with 3 differences: missing {kernels[1]}"
    with pytest.raises(UserError, match=closest) as error:
        recognise(wrong)
    assert "unexpected conv9.weight (3,)" in str(error.value)
    assert f"mis-shaped {kernels[0]} (1, 1, 1, 9), not" in str(error.value)


def test_safetensors_of_other_programs_need_no_metadata_of_ours(tmp_path):
    weights = torch_shapes("resnet18").to_empty(device="cpu").state_dict()
    save_file(weights, tmp_path / "hub.safetensors", {"format": "pt"})
    state_dict, metadata = read_weights(tmp_path / "hub.safetensors")
    assert metadata == {}
    assert recognise(state_dict) == ("resnet18", {"num_classes": 1000})
    model: Any = jax_shapes("resnet18")
    assert model.fc.kernel.shape == state_dict["fc.weight"].shape[::-1]
