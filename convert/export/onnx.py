"""ONNX, .onnx, checked with onnxruntime. Its metadata_props hold the metadata, a JSON string for each key.

onnxruntime.InferenceSession(path).run(None, {"images": images})        images (any, 3, H, W)
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from convert.export.program import checked_metadata, nchw
from convert.export.torch_program import exported_program
from convert.export.verified import VerifiedPair
from lma_jax import files


def write(pair: VerifiedPair, output: Path, *, fold: bool) -> None:
    """Writes the program of a pair in evaluation mode. Its input is called `images`, its output `logits`."""
    import onnxruntime

    exported = exported_program(pair, fold=fold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about itself and about the absence of torchvision
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        names: dict[str, Any] = dict(input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "batch"},))
        program: Any = torch.onnx.export(exported, dynamo=True, verbose=False, **names)
    # The exporter notes paths of this machine in them.
    for part in (program.model, program.model.graph, *program.model.graph.all_nodes()):
        part.metadata_props.clear()
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    metadata = checked_metadata(pair, lambda x: session.run(None, {"images": nchw(x).numpy()})[0], fold=fold)
    program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    files.write(output, program.model_proto.SerializeToString())
