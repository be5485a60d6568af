"""The model card of a run: scores, data, recipe, curves, verification and limits, as the checkpoint records them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.measure.size import size_of
from lma_jax.checkpoint.format import Checkpoint, Metadata
from lma_jax.hub_folder import CURVES, Description
from lma_jax.model_card import model_card, table
from lma_jax.recipes import defaults
from lma_jax.training.config import DECISIVE

SCORES = {"val_top1": "top-1 accuracy (%)", "val_top5": "top-5 accuracy (%)", "val_loss": "loss"}
# What the hub calls a data set of TFDS that has another name there.
DATASETS = {"imagenet2012": "imagenet-1k"}


def run_card(
    checkpoint: Checkpoint,
    description: Description,
    *,
    source: str,
    verified: Mapping[str, Any],
    has_curves: bool,
    license_id: str,
) -> str:
    """The text of README.md for the network of a checkpoint.

    Args:
        checkpoint: the checkpoint of the run.
        description: its network.
        source: how the usage names it, see `model_card`.
        verified: the summary of the verification.
        has_curves: whether a picture of the training curves lies beside it.
        license_id: licence of the weights, by the hub's identifier.
    """
    metadata = checkpoint.metadata
    sections = {"Scores and size": _scores(checkpoint), "Data": _data(metadata), "Recipe": _recipe(metadata)}
    if has_curves:
        sections["Curves"] = f"![Top-1 and top-5 error of training and validation]({CURVES})"
    sections |= {"Verification": _verification(verified), "Limits": _limits(metadata)}
    facts = {"license": license_id, **_results(metadata, source)}
    return model_card(description, source=source, facts=facts, sections=sections)


def _results(metadata: Metadata, source: str) -> dict[str, Any]:
    """What the hub lists: data sets, metrics and scores; nothing if the network was not evaluated."""
    config = metadata.config
    name = DATASETS.get(config["dataset"], config["dataset"])
    scores = {key: metadata.metrics[key] for key in ("val_top1", "val_top5") if key in metadata.metrics}
    if not scores:
        return {}
    results = {
        "task": {"type": "image-classification"},
        "dataset": {"type": name, "name": config["dataset"], "split": config["val_split"]},
        "metrics": [{"type": "accuracy", "name": SCORES[key], "value": round(scores[key], 2)} for key in scores],
    }
    listed = {} if config["dataset"] == "folder" else {"datasets": [name]}
    return {**listed, "metrics": ["accuracy"], "model-index": [{"name": source.split("/")[-1], "results": [results]}]}


def _scores(checkpoint: Checkpoint) -> str:
    metadata, config = checkpoint.metadata, checkpoint.metadata.config
    parameters, macs = size_of(metadata)
    rows = {SCORES[key]: f"{metadata.metrics[key]:.2f}" for key in SCORES if key in metadata.metrics}
    measured = f"Step {checkpoint.step:,}, on the split `{config['val_split']}` of `{config['dataset']}`.\n\n"
    size = {
        "parameters": f"{parameters:,}",
        "multiply-accumulates (M), convolutions and linear layers": f"{macs / 1e6:,.1f}",
    }
    unmeasured = "These weights were not evaluated where they were written.\n\n"
    return (measured if rows else unmeasured) + table({**rows, **size}, heading=("", ""))


def _data(metadata: Metadata) -> str:
    config = metadata.config
    if metadata.imported_from:
        return f"The weights were imported from the file `{Path(metadata.imported_from).name}`."
    splits = f"trained on the split `{config['train_split']}`, evaluated on `{config['val_split']}`"
    return f"`{config['dataset']}` with {metadata.num_classes:,} classes: {splits}."


def _recipe(metadata: Metadata) -> str:
    if metadata.imported_from:
        return "Unknown here."
    common = defaults()
    changed = {key: value for key, value in metadata.config.items() if key in DECISIVE and value != common[key]}
    if changed.get("init_from"):
        changed["init_from"] = Path(changed["init_from"]).name
    rows = {f"`{key}`": f"`{json.dumps(value)}`" for key, value in sorted(changed.items())}
    return (
        "Trained by `lma_jax.train`. What differs from the paper's protocol for ResNets, `configs/common.py`:\n\n"
        f"{table(rows, heading=('key', 'value'))}"
    )


def _verification(verified: Mapping[str, Any]) -> str:
    found = [
        f"- {dtype}: {verified[dtype]['passed']} of {verified[dtype]['layers']} outputs are equal, the largest "
        f"relative difference is {verified[dtype]['largest_relative']:.1e}"
        for dtype in ("float64", "float32")
    ]
    apart = len(verified["not_verified"])
    return (
        "The network was run in JAX and in PyTorch on the same random images before it was written, and every layer's "
        "output and the logits were compared:\n\n" + "\n".join(found) + "\n\n"
        f"{apart} layers, which are called or have outputs of the same axes in one framework only, were left out."
    )


def _limits(metadata: Metadata) -> str:
    config = metadata.config
    one_run = f"one run with the seed {config['seed']}" if "seed" in config else "one set of weights"
    return "\n".join(
        [
            f"- The scores are those of {one_run}, on images of the same data set. On others they are unknown.",
            f"- The network gives scores to its {metadata.num_classes:,} classes for every image, also where none of "
            "them is seen. They were not calibrated.",
            f"- Images of other sizes than {metadata.preprocessing.image_size} pixels are taken, but were not tried.",
            "- What the data show too seldom or wrongly, the network has learnt so.",
        ]
    )
