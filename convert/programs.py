"""Whole networks, weights included, as programs that run without this package.

    .pt2        torch.export         torch.export.load(path).module()(images)
    .onnx       ONNX                 onnxruntime.InferenceSession(path).run(None, {"images": images})
    .stablehlo  jax.export           a zip of metadata.json and `function`: jax.export.deserialize(...).call(images)

All take a float32 batch of any size of normalised images of one height and width and return logits. Every program is
run as it was serialised, on a batch size that its making did not see, before it is handed out.
"""

import copy
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flax import nnx

from lma_jax.errors import UserError
from lma_torch.fold import fold_batch_norm

# Largest difference between the logits of a program and of the network, relative to the largest logit.
TOLERANCE = 1e-5
# Where a StableHLO program runs; it is lowered for each.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Metadata = Mapping[str, Any]
Program = Callable[[np.ndarray], np.ndarray]


def torch_program(model: torch.nn.Module, images: np.ndarray, metadata: Metadata, *, fold: bool = False) -> bytes:
    """A .pt2 file: the program of `torch.export`, whose extra file metadata.json holds `metadata`.

    Args:
        model: a network of lma_torch in float32; the program is that of its evaluation mode.
        images: (N, H, W, 3) with N > 1, normalised: the program takes (any, 3, H, W).
        metadata: what JSON can hold.
        fold: fold batch normalisation into the convolutions.
    """
    exported = _exported(model, images, fold=fold)

    def serialised(metadata: Metadata) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(exported, buffer, extra_files={"metadata.json": json.dumps(metadata)})
        return buffer.getvalue()

    loaded = torch.export.load(io.BytesIO(serialised({}))).module()
    return serialised(_checked(metadata, lambda x: loaded(_nchw(x)).numpy(), model, images))


def onnx_program(model: torch.nn.Module, images: np.ndarray, metadata: Metadata, *, fold: bool = False) -> bytes:
    """A .onnx file, checked with onnxruntime; its metadata_props hold `metadata`, JSON by key.

    Args:
        model, images, metadata, fold: as in `torch_program`. The input of the program is `images`, its output `logits`.

    Raises:
        UserError: a package of the extra `onnx` is missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install onnx onnxruntime onnxscript") from error
    exported = _exported(model, images, fold=fold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about itself and about torchvision's absence
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        names: dict[str, Any] = dict(input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "batch"},))
        program: Any = torch.onnx.export(exported, dynamo=True, verbose=False, **names)
    # Among what the exporter noted of itself are the paths of this machine.
    for part in (program.model, program.model.graph, *program.model.graph.all_nodes()):
        part.metadata_props.clear()
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    metadata = _checked(metadata, lambda x: session.run(None, {"images": _nchw(x).numpy()})[0], model, images)
    program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    return program.model_proto.SerializeToString()


def stablehlo_program(
    jax_model: nnx.Module, model: torch.nn.Module, images: np.ndarray, metadata: Metadata, *, fold: bool = False
) -> bytes:
    """A .stablehlo file: a zip of `function`, serialised by `jax.export`, and metadata.json.

    Args:
        jax_model: a network of lma_jax in float32; it is put into evaluation mode.
        model: its twin of lma_torch, to check the program against.
        images: (N, H, W, 3) with N > 1, normalised: the program takes (any, H, W, 3).
        metadata: what JSON can hold.
        fold: fold batch normalisation into the convolutions.
    """
    import jax

    from lma_jax import fold as jax_fold

    jax_model.eval()
    graphdef, state = nnx.split(jax_fold.fold_batch_norm(jax_model) if fold else jax_model)
    shape = (*jax.export.symbolic_shape("batch"), *images.shape[1:])

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(images)

    exported = jax.export.export(logits, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, np.float32))
    function = exported.serialize()
    loaded = jax.export.deserialize(function)

    def run(images: np.ndarray) -> np.ndarray:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):  # a GPU would round to TF32
            return np.asarray(loaded.call(images))

    metadata = _checked(metadata, run, model, images)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("function", bytes(function))
        file.writestr("metadata.json", json.dumps(metadata))
    return buffer.getvalue()


def _exported(model: torch.nn.Module, images: np.ndarray, *, fold: bool) -> torch.export.ExportedProgram:
    frozen = (fold_batch_norm(model) if fold else copy.deepcopy(model).eval()).requires_grad_(False)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(frozen, (_nchw(images.astype(np.float32)),), dynamic_shapes=({0: batch},))


def _checked(metadata: Metadata, program: Program, model: torch.nn.Module, images: np.ndarray) -> dict[str, Any]:
    """`metadata` with the difference between a program and `model` for one of the images alone.

    Raises:
        ArithmeticError: it exceeds the tolerance, which would be a bug of the exporter.
    """
    image = images[:1].astype(np.float32)
    with torch.inference_mode():
        wanted = model.eval()(_nchw(image)).numpy()
    relative = float(np.abs(program(image) - wanted).max() / np.abs(wanted).max())
    if not relative <= TOLERANCE:
        raise ArithmeticError(f"the program differs from the network by {relative:.1e}, {TOLERANCE:.0e} are allowed")
    return {**metadata, "program": {"relative": relative, "tolerance": TOLERANCE}}


def _nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
