"""A file of PyTorch weights as a checkpoint of lma_jax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from convert.recognition import recognise
from lma_jax.checkpoint.format import Metadata
from lma_jax.checkpoint.manager import require_new, save_weights
from lma_jax.errors import UserError
from lma_jax.preprocessing import IMAGENET, Preprocessing, preprocessing_from
from lma_jax.registry import create_model, problem_with, registered_by
from lma_jax.state_dict import from_state_dict, require_fit
from lma_jax.weight_files import open_weights

# Config keys that evaluation reads, besides the preprocessing.
EVALUATION = dict(
    dataset="imagenet2012",
    data_dir="",
    val_split="validation",
    eval_batch_size=256,
    data_threads=0,
    data_workers=0,
    on_bad_image="error",
    dtype="float32",
    loss="softmax",
)
LOSSES = ("softmax", "sigmoid")


def import_weights(weights: Path, workdir: Path, *, model: str | None = None) -> str:
    """Writes the weights of a file as checkpoint 0 of a new workdir.

    Args:
        weights: .safetensors or .pth file of this project, of the paper's authors, of torchvision or of timm, or a
            folder of the Hugging Face Hub.
        workdir: folder to create.
        model: name of the network; by default it is recognised by names and shapes.

    Returns:
        One line about the result.

    Raises:
        UserError: the file is unusable or of another network (all differences are named), or the workdir exists or
            cannot be written.
    """
    require_new(workdir)
    file = open_weights(weights)
    described = file.metadata
    try:
        _require_registered(described)
        name, options = recognise(file.tensors, name=model)
        network = nnx.eval_shape(lambda: create_model(name, **options, rngs=nnx.Rngs(0)))
        require_fit(network, file.tensors)
        num_classes = options.pop("num_classes")
        metadata = Metadata(
            model=name,
            num_classes=num_classes,
            class_names=_class_names(described, num_classes),
            config={**EVALUATION, **_loss(described), "model": name, **options, **vars(_preprocessing(described))},
            imported_from=str(weights.absolute()),
            registered_by=registered_by(name),
        )
    except (UserError, ValueError) as error:
        raise UserError(f"cannot use {weights}: {error}") from error
    save_weights(workdir, from_state_dict(network, file.read()), metadata)
    return f"{name} with {num_classes:,} classes: weights of {weights} written to {workdir}"


def _require_registered(described: Mapping[str, Any]) -> None:
    """Raises a UserError if a file is of a network whose attention a module of the user is to register first."""
    module = described.get("registered_by")
    if module and isinstance(module, str) and (problem := problem_with(described.get("model"), registered_by=module)):
        raise UserError(problem)


def _preprocessing(described: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing in the metadata of a file, or ImageNet's if it has none that is complete.

    Raises:
        ValueError: no image can be prepared so.
    """
    given = described.get("preprocessing")
    if isinstance(given, Mapping) and all(key in given for key in vars(IMAGENET)):
        return preprocessing_from(given)
    return IMAGENET


def _loss(described: Mapping[str, Any]) -> dict[str, str]:
    """The loss in the metadata of a file, which turns logits into probabilities; nothing if it is unknown."""
    return {"loss": described["loss"]} if described.get("loss") in LOSSES else {}


def _class_names(described: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """The class names in the metadata of a file; None unless there is one for each class.

    Raises:
        ValueError: they are no strings, or the file says that it has other classes than its weights.
    """
    names = described.get("class_names")
    if described.get("num_classes", num_classes) != num_classes:
        raise ValueError(f"its metadata say num_classes={described['num_classes']!r}, its weights {num_classes}")
    if not isinstance(names, list | tuple):
        return None
    if not all(isinstance(name, str) for name in names):
        raise ValueError("its metadata have class_names that are no strings")
    if len(names) != num_classes and "num_classes" in described:
        raise ValueError(f"its metadata have {len(names)} class_names for {num_classes} classes")
    return tuple(names) if len(names) == num_classes else None
