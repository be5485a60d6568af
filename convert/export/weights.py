"""Weights by PyTorch's names: .safetensors and .pth."""

from pathlib import Path

from convert.export.verified import VerifiedPair
from lma_jax.naming import to_names
from lma_jax.weight_files import to_array, write_weights


def write(pair: VerifiedPair, output: Path, *, fold: bool) -> None:
    """Writes the weights of a pair in its names, as they are: `fold` must be False."""
    if fold:
        raise ValueError("weights by name cannot be folded")
    state_dict = {key: to_array(tensor) for key, tensor in pair.torch_model.state_dict().items()}
    if pair.names:
        state_dict = to_names(state_dict, pair.names, position=pair.torch_model.position)
    write_weights(output, state_dict, pair.metadata)
