"""Networks with the weights of a run or of a file. Only runs need JAX, and only .pth files PyTorch."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lma_jax.errors import require_packages
from lma_jax.weight_files import SUFFIXES, StateDict, differing_options, options_of, read_weights, within

if TYPE_CHECKING:
    from flax import nnx

    from lma_jax.layers import Network

# The first convolution and the bias of the last linear layer of the backbones, by PyTorch's names.
INPUTS = ("conv1.weight", "features.0.0.weight")
HEADS = ("fc.bias", "classifier.1.bias")
# Characters of the differences between weights and a network that an error shows.
SHOWN = 400


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    rngs: "nnx.Rngs",
    **options: Any,
) -> "Network":
    """Builds a network by name, in training mode.

    Args:
        name: one of `list_models()`.
        weights: a run folder of lma_jax (its newest checkpoint), a folder of the Hugging Face Hub, or a .safetensors
            or .pth file of this project, of torchvision, of timm or of the paper's authors. Stem and width are theirs
            unless `options` say otherwise, and the first convolution is adapted to `in_chans`.
        num_classes: size of the output, by default that of the weights, or 1000. A classifier of another size than
            theirs starts anew.
        features_only: return the list of the feature maps C1 to C5 instead of logits, for detection and segmentation;
            `model.feature_info` has their channels and strides.
        out_indices: which of these maps, 0 to 4, or how many of the last; all by default.
        **options: see `registry.create_model`.
        rngs: the stream `params` initialises the weights; dropout draws from `dropout`.

    Raises:
        ValueError: see `registry.create_model`, no such feature map, or the weights are those of another network.
        UserError: the weights are missing or damaged, or a package is missing.
    """
    from lma_jax import registry
    from lma_jax.layers import whole_number
    from lma_jax.state_dict import from_state_dict

    pretrained, classes = None, 1000 if num_classes is None else num_classes
    shown: dict[str, Any] = {}
    if weights is not None:
        in_chans = whole_number(options.get("in_chans", 3), name="in_chans", least=1)
        pretrained, shown, classes = read_pretrained(weights, in_chans=in_chans)
        options = {**registry.recorded_options(name, shown), **options}
    model = registry.create_model(name, num_classes=classes, rngs=rngs, **options)
    if pretrained is not None:
        try:
            from_state_dict(model, pretrained)
        except ValueError as error:
            raise ValueError(misfit(error, weights, shown, options)) from error
    if num_classes not in (None, classes):
        model.reset_classifier(num_classes, rngs=rngs)
    if features_only:
        model.select_features(out_indices)
    return model


def read_pretrained(source: str | Path, *, in_chans: int) -> tuple[StateDict, dict[str, Any], int]:
    """The weights, by PyTorch's names, of a run (its newest checkpoint), folder or file, for images of `in_chans`.

    Returns:
        The weights, the options that they show, and the number of their classes, 0 if they have no classifier.

    Raises:
        UserError: they are missing or damaged, or a package is missing.
    """
    path = within(Path(source))
    weights = read_weights(path)[0] if path.suffix in SUFFIXES else _of_run(path)
    adapted = {key: adapt_input(weights[key], in_chans) for key in INPUTS if key in weights}
    num_classes = next((len(weights[key]) for key in HEADS if key in weights), 0)
    return {**weights, **adapted}, options_of(weights), num_classes


def misfit(error: Exception, source: object, shown: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Why weights do not fit a network: it was given other options than theirs, or the first differences.

    Args:
        error: the differences.
        source: where the weights come from.
        shown: the options that the weights show.
        options: those of the network.
    """
    others = differing_options(shown, options)
    if not others:
        return f"{source}: {textwrap.shorten(str(error), SHOWN, placeholder=' ...')}"
    given, theirs = (", ".join(f"{name}={values[name]!r}" for name in others) for values in (options, shown))
    return f"{source} holds weights of a network with {theirs}, not {given}: leave out these options"


def adapt_input(kernel: np.ndarray, in_chans: int) -> np.ndarray:
    """The weights (out, in, k, k) of the first convolution for images of `in_chans` channels, as timm adapts them.

    They are summed for one channel, and else repeated and scaled to the same total.
    """
    channels = kernel.shape[1]
    if in_chans == channels:
        return kernel
    if in_chans == 1:
        return kernel.sum(1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(in_chans / channels), 1, 1))[:, :in_chans]
    return repeated * np.asarray(channels / in_chans, kernel.dtype)


def _of_run(workdir: Path) -> StateDict:
    require_packages(f"{workdir}, which is no file of weights but a run,", "jax", "flax")
    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.state_dict import to_state_dict

    return to_state_dict(restore_model(load_checkpoint(workdir)))
