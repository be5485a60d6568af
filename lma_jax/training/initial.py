"""The weights a run starts from: another checkpoint's, a file's, or a plain network's with LMA grafted on."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lma_jax.checkpoint.format import Arrays, Checkpoint, load_checkpoint, to_arrays
from lma_jax.checkpoint.restore import fill
from lma_jax.definition import split
from lma_jax.errors import UserError
from lma_jax.training.state import TrainState

HEADS = ("params/fc/", "params/classifier/1/")


def load_initial(config: ConfigDict, state: TrainState) -> tuple[TrainState, str]:
    """`state` with the weights of config.init_from, and what was done in words.

    A head of another class count keeps its random weights.

    Raises:
        UserError: the weights are missing or damaged, or of another network; the differences are named.
    """
    exact = config.warm_start == "exact"
    name = config.model.removesuffix("_lma") if exact else config.model
    arrays = _read(Path(config.init_from), name)
    wanted = to_arrays({"params": state.params, "batch_stats": state.batch_stats})
    if exact:
        arrays = graft_lma(arrays, wanted)
    heads = [path for path in wanted if path.startswith(HEADS)]
    other_head = any(path in arrays and arrays[path].shape != wanted[path].shape for path in heads)
    if other_head:
        arrays = {**arrays, **{path: wanted[path] for path in heads}}
    arrays = {path: array.astype(wanted[path].dtype) if path in wanted else array for path, array in arrays.items()}
    bias = next(path for path in heads if path.endswith("bias"))
    source = Checkpoint(0, arrays, {"model": name, "num_classes": len(arrays.get(bias, ()))})
    sharding = state.step.sharding

    def place() -> Any:
        return (
            fill(state.params, source, sharding=sharding, prefix="params/"),
            fill(state.batch_stats, source, sharding=sharding, prefix="batch_stats/"),
        )

    (params, batch_stats), average = place(), state.ema and dict(zip(("params", "batch_stats"), place()))
    said = f"weights of {config.init_from}"
    said += ", LMA grafted on as a factor of 1" if exact else ""
    said += f", with a new head of {wanted[bias].size:,} classes" if other_head else ""
    return TrainState(state.step, params, batch_stats, state.opt_state, average), said


def graft_lma(plain: Arrays, wanted: Arrays) -> Arrays:
    """The weights of an LMA network that computes what the plain network does.

    With zero taps LMA is exactly y = x / 4; the layer beside it takes the factor 4: the BatchNorm before it in a
    ResNet, the convolution after it in MobileNetV2, where the attention also shifts the names behind it by one.

    Args:
        plain: "params/..." and "batch_stats/..." of the plain network.
        wanted: those of the LMA network, for their paths and shapes.
    """
    return {path: _graft(path, plain, wanted) for path in wanted if _is_tap(path) or _origin(path, wanted) in plain}


def _graft(path: str, plain: Arrays, wanted: Arrays) -> np.ndarray:
    if _is_tap(path):
        return np.zeros_like(wanted[path])
    factor = 4 if _takes_factor(path, wanted) else 1
    return factor * plain[_origin(path, wanted)]


def _is_tap(path: str) -> bool:
    return path.endswith(("/conv_h/kernel", "/conv_w/kernel"))


def _takes_factor(path: str, wanted: Arrays) -> bool:
    block, _, leaf = path.partition("/conv/")
    if f"{block}/conv/2/conv_h/kernel" in wanted:
        return leaf == "3/kernel"
    block, layer, leaf = ["", *path.rsplit("/", 2)][-3:]
    last = "bn3" if f"{block}/bn3/scale" in wanted else "bn2"
    return f"{block}/attention/conv_h/kernel" in wanted and layer == last and leaf in ("scale", "bias")


def _origin(path: str, wanted: Arrays) -> str:
    """The path in the plain network."""
    block, _, leaf = path.partition("/conv/")
    params_block = block.replace("batch_stats/", "params/", 1)
    if f"{params_block}/conv/2/conv_h/kernel" in wanted and leaf[0] in "34":
        return f"{block}/conv/{int(leaf[0]) - 1}{leaf[1:]}"
    return path


def _read(path: Path, name: str) -> Arrays:
    """The params and batch_stats of the network `name` in a workdir or a file of PyTorch weights."""
    if path.suffix not in (".safetensors", ".pth"):
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata["model"] != name:
            raise UserError(f"config.init_from={path} is a {checkpoint.metadata['model']}, but a {name} is needed")
        return checkpoint.evaluated().arrays
    try:
        from convert.importer import read_network
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch and safetensors: pip install torch safetensors") from error
    _, params, batch_stats = split(read_network(path, model=name).model)
    return to_arrays({"params": params, "batch_stats": batch_stats})
