"""Weights for `create_model`, as lma_jax.pretrained reads them. Only runs need JAX."""

from pathlib import Path

from torch import Tensor, nn


def read_pretrained(source: str | Path, *, in_chans: int) -> tuple[dict[str, Tensor], int]:
    """As lma_jax.pretrained.read_pretrained, in tensors."""
    from lma_jax import pretrained
    from lma_jax.weight_files import to_tensor

    weights, num_classes = pretrained.read_pretrained(source, in_chans=in_chans)
    return {key: to_tensor(array) for key, array in weights.items()}, num_classes


def fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fills a network with weights.

    Raises:
        ValueError: they are those of another network; the differences are named.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit the model: {' '.join(str(error).split())}") from error
