"""Networks with the weights of a run or of a file, which lma_jax.pretrained reads. Only runs need JAX."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lma_torch import registry
from lma_torch.layers import Network, whole_number


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> Network:
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

    Raises:
        ValueError: see `registry.create_model`, no such feature map, or the weights are those of another network.
        lma_jax.errors.UserError: the weights are missing or damaged, or a package is missing.
    """
    pretrained, classes = None, 1000 if num_classes is None else num_classes
    shown: dict[str, Any] = {}
    if weights is not None:
        in_chans = whole_number(options.get("in_chans", 3), name="in_chans", least=1)
        pretrained, shown, classes = read_pretrained(weights, in_chans=in_chans)
        options = {**registry.recorded_options(name, shown), **options}
    model = registry.create_model(name, num_classes=classes, **options)
    if pretrained is not None:
        try:
            fill(model, pretrained)
        except ValueError as error:
            from lma_jax.pretrained import misfit

            raise ValueError(misfit(error, weights, shown, options)) from error
    if num_classes not in (None, classes):
        model.reset_classifier(num_classes)
    if features_only:
        model.select_features(out_indices)
    return model


def read_pretrained(source: str | Path, *, in_chans: int) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """As lma_jax.pretrained.read_pretrained, in tensors."""
    from lma_jax import pretrained
    from lma_jax.weight_files import to_tensor

    weights, options, num_classes = pretrained.read_pretrained(source, in_chans=in_chans)
    return {key: to_tensor(array) for key, array in weights.items()}, options, num_classes


def fill(model: nn.Module, weights: dict[str, Tensor], *, assign: bool = False) -> None:
    """Fills a network with weights, or with `assign` puts them in the place of its own.

    Raises:
        ValueError: they are those of another network; the differences are named.
    """
    try:
        model.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit the model: {' '.join(str(error).split())}") from error
