"""The folder that the Hugging Face Hub calls a model, for both frameworks. It imports neither.

config.json          the network, in the names of this project, and what timm and transformers read of it
model.safetensors    the weights, with metadata and a digest, by timm's names if it has the network
README.md            the model card
labels.txt           a class name a line, where they are known
curves.png           the training curves, where there was a run

Both libraries load the networks that `timm_name` names; they refuse the others by name.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lma_jax import files
from lma_jax.errors import UserError, one_line, require_packages
from lma_jax.naming import to_names
from lma_jax.preprocessing import IMAGENET, Preprocessing
from lma_jax.pretrained import HEADS, INPUTS
from lma_jax.weight_files import HUB_WEIGHTS, LONGEST_NAME, write_weights

CONFIG, CARD, LABELS, CURVES = "config.json", "README.md", "labels.txt", "curves.png"
FILES = (CONFIG, HUB_WEIGHTS, CARD, LABELS, CURVES)
# Bytes of config.json: ten times those of a network with the classes of ImageNet-21k.
CONFIG_LIMIT = 2**24
# A repository of the hub, and one of its revisions.
REPOSITORY = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
# What timm calls the plain networks that it has, and their widths.
TIMM_NAMES: dict[tuple[str, float | None], str] = {
    **{(f"resnet{depth}", None): f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{("mobilenetv2", percent / 100): f"mobilenetv2_{percent:03}" for percent in (35, 50, 75, 100, 140)},
}
# The options that timm has as well, or that change nothing in evaluation.
TIMM_OPTIONS = {"width_mult", "in_chans", "drop_path", "zero_init_residual", "dropout"}
# The arguments of its networks that this project has as well.
TIMM_ARGUMENTS = {"in_chans": "in_chans", "output_stride": "output_stride", "drop_path_rate": "drop_path"}


@dataclass(frozen=True)
class Recorded:
    """The network that a folder says it holds: the arguments of `create_model`.

    Attributes:
        model: its name.
        options: its further options.
        num_classes: number of classes.
    """

    model: str
    options: Mapping[str, Any]
    num_classes: int


@dataclass(frozen=True)
class Description(Recorded):
    """What a folder says about its network.

    Attributes:
        num_features: channels of the last feature map.
        class_names: one for each class, or None where they are unknown.
        preprocessing: that of its images.
    """

    num_features: int
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing

    @property
    def timm_name(self) -> str | None:
        """What timm calls the network, if it has it."""
        width = self.options.get("width_mult", 1.0) if self.model == "mobilenetv2" else None
        return TIMM_NAMES.get((self.model, width)) if self.options.keys() <= TIMM_OPTIONS else None

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.options.get("in_chans", 3)


def describe(
    model: Any,
    *,
    name: str,
    options: Mapping[str, Any],
    class_names: Sequence[str] | None,
    preprocessing: Preprocessing | None,
) -> Description:
    """The description of a network of either framework, for images as ImageNet's by default.

    Raises:
        ValueError: the network returns feature maps, or there is not one class name for each class.
    """
    if model.out_indices is not None:
        raise ValueError("a network of feature maps cannot be saved: save the classifier, before features_only")
    if class_names is not None and len(class_names) != model.num_classes:
        raise ValueError(f"{len(class_names)} class_names were given for {model.num_classes} classes")
    names = None if class_names is None else tuple(class_names)
    options = {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}
    return Description(name, options, model.num_classes, model.num_features, names, preprocessing or IMAGENET)


def require_own(folder: Path, *, force: bool) -> Path:
    """Checks that a folder can be written: a new or an empty one, one that was written before, or with `force` any.

    Returns:
        The folder, without links and `..`.

    Raises:
        UserError: it holds other files, or is a file.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: give another one")
    present = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
    if present and not force and not _is_own(folder / CONFIG):
        raise UserError(
            f"{folder} holds other files ({', '.join(sorted(present)[:3])}): give a new folder, or replace by force "
            f"what is called {', '.join(FILES)}"
        )
    return folder


def name_of(folder: str | Path) -> str:
    """The name of a folder, by which the usage in its card calls it."""
    return os.path.basename(os.path.abspath(folder))


def write_folder(
    folder: Path,
    description: Description,
    state_dict: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, Any],
    card: str,
    curves: bytes | None = None,
    force: bool = False,
) -> None:
    """Writes a folder, each of its files atomically and config.json last. Those of an earlier save are replaced.

    Args:
        folder: it is created if it is missing.
        description: the network.
        state_dict: its weights by the names of this project.
        metadata: further metadata of the weights, which JSON can hold.
        card: the model card.
        curves: a PNG picture of the training curves.
        force: whether to replace files of these names that this program did not write.

    Raises:
        UserError: the folder holds other files or cannot be written.
    """
    folder = require_own(folder, force=force)
    if description.timm_name:
        state_dict = to_names(state_dict, "timm", position="")
    names = description.class_names
    labels = None if names is None else labels_text(names)
    described = {
        "model": description.model,
        "model_options": description.options,
        "num_classes": description.num_classes,
        "class_names": names,
        "preprocessing": vars(description.preprocessing),
    }
    as_json_gives_it_back = json.loads(json.dumps({**metadata, **described}))
    write_weights(folder / HUB_WEIGHTS, state_dict, as_json_gives_it_back)
    content = json.dumps(config(description, state_dict), indent=2, ensure_ascii=False) + "\n"
    for name, text in ((CARD, card), (LABELS, labels), (CURVES, curves), (CONFIG, content)):
        if text is None:
            (folder / name).unlink(missing_ok=True)
        else:
            files.write(folder / name, text)


def labels_text(class_names: Sequence[str]) -> str:
    """Class names, one a line."""
    return "".join(f"{one_line(name)}\n" for name in class_names)


def config(description: Description, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds of a network with these weights, by the names in the folder."""
    own, timm_name, names = description, description.timm_name, description.class_names
    size = own.preprocessing.image_size
    first_conv, classifier = (
        next((key.rpartition(".")[0] for key in keys if key in state_dict), None)
        for keys in ((*INPUTS, "conv_stem.weight"), (*HEADS, "classifier.bias"))
    )
    pretrained = {
        "input_size": [own.in_chans, size, size],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": crop_share(own.preprocessing),
        "crop_mode": "center",
        "mean": own.preprocessing.mean,
        "std": own.preprocessing.std,
        "num_classes": own.num_classes,
        "pool_size": None,
        "first_conv": first_conv,
        "classifier": classifier,
    }
    for_timm = {
        "architecture": timm_name or f"lma_{own.model}",  # which timm does not have, even where it is a resnet18
        "num_classes": own.num_classes,
        "num_features": own.num_features,
        "global_pool": "avg",
        "model_args": {"in_chans": own.in_chans},
        "pretrained_cfg": pretrained,
    }
    for_transformers: dict[str, Any] = {
        "architectures": ["TimmWrapperForImageClassification" if timm_name else own.model],
        "model_type": "timm_wrapper" if timm_name else "lma",
        "num_labels": own.num_classes,
        "image_size": size,
    }
    if names is not None:
        for_timm["label_names"] = names
        for_transformers["id2label"] = dict(enumerate(names))
        for_transformers["label2id"] = {name: index for index, name in enumerate(names)}
    return {"model": own.model, "model_options": own.options, **for_timm, **for_transformers}


def crop_share(preprocessing: Preprocessing) -> float:
    """The share of the resized image's side that evaluation sees: timm divides by it, and rounds down."""
    size, share = preprocessing.image_size, preprocessing.image_size / preprocessing.resize_size
    return share if math.floor(size / share) == preprocessing.resize_size else math.nextafter(share, 0)


def locate(source: str | Path) -> Path:
    """The folder that `source` names: a folder of this machine, or a repository of the hub, which is downloaded.

    Args:
        source: a path, or "org/name", or "org/name@revision".

    Raises:
        UserError: there is none, it cannot be downloaded, or huggingface_hub is missing.
    """
    folder = files.path_of(source)
    if folder.is_dir():
        return folder
    repository = REPOSITORY.fullmatch(str(source))
    if repository is None:
        raise UserError(f"{source} is no folder, and no repository of the Hugging Face Hub, which is called org/name")
    require_packages(f"there is no folder {source}, and the Hugging Face Hub", "huggingface_hub")
    from huggingface_hub import snapshot_download

    with asking_the_hub(f"there is no folder {source}, and from the Hugging Face Hub it cannot be downloaded"):
        patterns = [CONFIG, HUB_WEIGHTS]
        return Path(snapshot_download(repository["id"], revision=repository["revision"], allow_patterns=patterns))


@contextlib.contextmanager
def asking_the_hub(problem: str) -> Iterator[None]:
    """Turns what huggingface_hub raises, without a network for instance, into a UserError."""
    try:
        yield
    except Exception as error:  # of many packages, which it may change
        raise UserError(f"{problem}: {' '.join(str(error).split())[:LONGEST_NAME]}") from error


def unusable(source: object, error: Exception, metadata: Mapping[str, Any], *, known: bool) -> UserError:
    """The error of a folder that is not that of its network.

    Args:
        source: the folder, as it was given.
        error: what is wrong.
        metadata: those of its weights, which name the module that registered the network's attention.
        known: whether there is a network of its name; otherwise that module may have to be imported.
    """
    module = None if known else metadata.get("registered_by")
    remedy = f" (its attention was registered by {one_line(module)}: import that first)" if module else ""
    return UserError(f"cannot use {source}: {error}{remedy}")


def read_config(folder: Path) -> Recorded:
    """The network that the config.json of a folder names. Nothing in it is executed, and it may be timm's.

    Raises:
        UserError: the file is missing, damaged, too large, or names no network.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}: it is no folder of save_pretrained; a run goes to create_model")
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise ValueError(f"it takes more than {CONFIG_LIMIT:,} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        recorded = _recorded(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot use {path}: {error}") from error
    return recorded


def _recorded(content: Mapping[str, Any]) -> Recorded:
    if "model" in content:
        model, options = content["model"], content.get("model_options", {})
    else:
        model, options = _from_timm(content)
    num_classes = content.get("num_classes")
    if not isinstance(model, str) or len(model) > LONGEST_NAME:
        raise ValueError(f"it names no network, model is {model!r:.80}")
    if type(num_classes) is not int or not 0 <= num_classes < 2**31:
        raise ValueError(f"num_classes must be a whole number, got {num_classes!r:.80}")
    if not isinstance(options, dict) or not all(isinstance(value, str | int | float) for value in options.values()):
        raise ValueError(f"model_options must be a mapping to strings and numbers, got {options!r:.80}")
    return Recorded(model, options, num_classes)


def _from_timm(content: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The name and the options of a network that timm has; another name stays as it is.

    Raises:
        ValueError: it has options that this project lacks, and would compute something else.
    """
    architecture, given = content.get("architecture"), content.get("model_args", {})
    if not isinstance(given, dict):
        raise ValueError(f"model_args must be a mapping, got {given!r:.80}")
    given = {"global_pool": content.get("global_pool", "avg"), **given}
    given.pop("num_classes", None)  # said beside them as well
    if given.pop("global_pool") != "avg":
        raise ValueError("its global_pool is not avg, the only one that this project has")
    if unknown := sorted(given.keys() - TIMM_ARGUMENTS.keys()):
        raise ValueError(f"its model_args has {', '.join(map(repr, unknown))[:80]}, which this project does not have")
    options = {TIMM_ARGUMENTS[name]: value for name, value in given.items()}
    for (model, width), name in TIMM_NAMES.items():
        if name == architecture:
            return model, options if width is None else {"width_mult": width, **options}
    return architecture, options


def _is_own(path: Path) -> bool:
    """Whether a file is a config.json that this program wrote."""
    with contextlib.suppress(OSError):
        return path.stat().st_size <= CONFIG_LIMIT and b'"model_options": {' in path.read_bytes()
    return False
