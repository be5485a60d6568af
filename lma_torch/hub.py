"""Networks as folders of the Hugging Face Hub, which lma_jax.hub_folder describes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lma_torch import registry
from lma_torch.layers import Network
from lma_torch.pretrained import create_model, fill

if TYPE_CHECKING:
    from lma_jax.hub_folder import Recorded
    from lma_jax.preprocessing import Preprocessing


def save_pretrained(
    model: Network,
    folder: str | Path,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: "Preprocessing | None" = None,
    metadata: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Writes a network as a folder that `from_pretrained` reads in either framework.

    Args:
        model: a classifier.
        folder: a new or an empty folder, or one that was written before.
        name: one of `list_models()`; a network of `create_model` knows it.
        class_names: a name for each class.
        preprocessing: that of its images; by default ImageNet's.
        metadata: further metadata of the weights, which JSON can hold.
        force: replace files that this program did not write.

    Raises:
        ValueError: the name is missing or that of another network, or the class names are not those of its classes.
        lma_jax.errors.UserError: the folder holds other files or cannot be written.
    """
    from lma_jax.hub_folder import describe, name_of, write_folder
    from lma_jax.model_card import model_card
    from lma_jax.pretrained import options_of
    from lma_jax.weight_files import to_array

    tensors, name = model.state_dict(), name or model.name
    options = dict(model.options) if model.name else registry.recorded_options(name, options_of(tensors))
    described = describe(model, name=name, options=options, class_names=class_names, preprocessing=preprocessing)
    require_fit(described, tensors)
    arrays = {key: to_array(tensor) for key, tensor in tensors.items()}
    card = model_card(described, source=name_of(folder))
    write_folder(Path(folder), described, arrays, metadata=metadata or {}, card=card, force=force)


def from_pretrained(source: str | Path, **options: Any) -> Network:
    """The network of a folder of `save_pretrained` or convert.to_hub, in evaluation mode.

    Args:
        source: the folder, or a repository of the Hugging Face Hub, "org/name" or "org/name@revision".
        **options: see `create_model`: num_classes, in_chans, features_only, device, dtype, ...

    Raises:
        ValueError: see `create_model`.
        lma_jax.errors.UserError: there is no such folder or repository, it is damaged, or its weights are not those of
            its network.
    """
    from lma_jax.hub_folder import locate, read_config, unusable
    from lma_jax.weight_files import HUB_WEIGHTS, open_weights

    folder = locate(source)
    recorded = read_config(folder)
    weights = open_weights(folder / HUB_WEIGHTS)
    try:
        require_fit(recorded, weights.tensors)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        known = registry.problem_with(recorded.model) is None
        raise unusable(source, error, weights.metadata, known=known) from error
    model = create_model(recorded.model, weights=weights.path, **{**recorded.options, **options})
    return model.eval()


def require_fit(recorded: "Recorded", tensors: Mapping[str, Any]) -> None:
    """Checks that tensors, of which only names and shapes matter, are those of a network.

    Raises:
        ValueError: they are not, or there is no such network.
        TypeError, ArithmeticError, RuntimeError: an option has an impossible value.
    """
    options: dict[str, Any] = dict(num_classes=recorded.num_classes, device="meta", dtype=None)
    model = registry.create_model(recorded.model, **options, **recorded.options)
    given = {key: torch.empty(tuple(tensor.shape), device="meta") for key, tensor in tensors.items()}
    fill(model, given, assign=True)
