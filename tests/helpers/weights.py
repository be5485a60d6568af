"""Weights that both frameworks can rebuild from the names alone."""

import zlib

import numpy as np
import torch


def golden_weights(module: torch.nn.Module, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """A float64 state_dict for `module` (it may lie on the meta device), drawn from the names alone."""
    weights = {}
    for name, tensor in module.state_dict().items():
        rng, shape = np.random.default_rng([seed, zlib.crc32(name.encode())]), tuple(tensor.shape)
        if name.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            value = rng.normal(0, 0.1, shape)
        elif len(shape) >= 2:
            value = rng.normal(0, 1, shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        weights[name] = torch.from_numpy(value)
    return weights


def well_conditioned_weights(model: torch.nn.Module, images: np.ndarray) -> dict[str, torch.Tensor]:
    """Weights that do not amplify rounding, however deep the network.

    Most units are active, and the running statistics are those of `images` (N, 3, H, W).
    """
    weights = golden_weights(model)
    for key in weights:
        if key.replace("bias", "running_var") in weights and key.endswith("bias"):
            weights[key] += 1
    model.load_state_dict(weights, assign=True)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.from_numpy(images))
    return model.state_dict()
