"""The program of torch.export, .pt2, with the metadata in its extra file metadata.json.

torch.export.load(path).module()(images)        images (any, 3, H, W)
"""

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.export.program import checked_metadata, nchw
from convert.export.verified import VerifiedPair
from lma_jax import files
from lma_torch.fold import fold_batch_norm


def write(pair: VerifiedPair, output: Path, *, fold: bool) -> None:
    """Writes the program of a pair in evaluation mode."""
    exported = exported_program(pair, fold=fold)

    def serialized(metadata: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(exported, buffer, extra_files={"metadata.json": json.dumps(metadata)})
        return buffer.getvalue()

    loaded = torch.export.load(io.BytesIO(serialized({}))).module()
    metadata = checked_metadata(pair, lambda images: loaded(nchw(images)).numpy(), fold=fold)
    files.write(output, serialized(metadata))


def exported_program(pair: VerifiedPair, *, fold: bool) -> torch.export.ExportedProgram:
    """The program of a pair in evaluation mode, for batches of any size."""
    model = fold_batch_norm(pair.torch_model) if fold else copy.deepcopy(pair.torch_model).eval()
    images = nchw(pair.images.astype(np.float32))
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    return torch.export.export(model.requires_grad_(False), (images,), dynamic_shapes=shapes)
