"""The network of a checkpoint in both frameworks, verified layer by layer."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flax import nnx

from convert.pair import images_for, restored_pair
from convert.parity import verify
from lma_jax.checkpoint.format import Checkpoint
from lma_jax.naming import to_names
from lma_torch.layers import Network


@dataclass(frozen=True)
class VerifiedPair:
    """A network in both frameworks that computes the same in every layer that was compared.

    Attributes:
        jax_model, torch_model: the pair.
        names: the library whose names a file of weights has; None for this project's.
        images: random images of the network's size, (N, H, W, 3), N > 1, float64.
        metadata: names, model, model_options, registered_by, num_classes, class_names, preprocessing, loss, metrics,
            checkpoint, step, and verified, the summary of the verification; JSON can hold it.
    """

    jax_model: nnx.Module
    torch_model: Network
    names: str | None
    images: np.ndarray
    metadata: dict[str, Any]


def verified_pair(checkpoint: Checkpoint, *, source: str, names: str | None = None) -> VerifiedPair:
    """Restores the network of a checkpoint in both frameworks and verifies it.

    Args:
        checkpoint: what `load_checkpoint` returned.
        source: its workdir, for the metadata.
        names: "timm", "torchvision" or "paper" for a file of weights in their names.

    Raises:
        UserError: the network cannot be built, or has no such names.
        ArithmeticError: the frameworks do not compute the same, which is a bug.
    """
    described = checkpoint.metadata
    pair = restored_pair(checkpoint)
    if names is not None:
        to_names(pair.torch_model.state_dict(), names, position=pair.torch_model.position)  # or a UserError, early
    images = images_for(pair.preprocessing, count=2)
    verification = verify(pair.jax_model, pair.torch_model, images)
    if not verification.passed:
        raise ArithmeticError("\n".join(verification.report(by_layer=True)))
    metadata = {
        "names": names,
        "model": described.model,
        "model_options": described.model_options,
        "registered_by": described.registered_by,
        "num_classes": described.num_classes,
        "class_names": described.class_names,
        "preprocessing": asdict(pair.preprocessing),
        "loss": described.config.get("loss"),
        "metrics": dict(described.metrics),
        "checkpoint": source,
        "step": checkpoint.step,
        "verified": verification.summary(),
    }
    as_json_gives_it_back = json.loads(json.dumps(metadata))  # the same in every format
    return VerifiedPair(pair.jax_model, pair.torch_model, names, images, as_json_gives_it_back)
