"""Weights and momentum of networks between lma_jax and lma_torch.

Importing it loads neither framework: a function's module is loaded when the function is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.momentum import get_momentum, momentum_to_jax, momentum_to_torch, set_momentum
    from convert.weights import to_jax, to_torch
else:
    MODULES = {
        "get_momentum": "convert.momentum",
        "momentum_to_jax": "convert.momentum",
        "momentum_to_torch": "convert.momentum",
        "set_momentum": "convert.momentum",
        "to_jax": "convert.weights",
        "to_torch": "convert.weights",
    }

    def __getattr__(name: str) -> Any:
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *MODULES})


__all__ = ["get_momentum", "momentum_to_jax", "momentum_to_torch", "set_momentum", "to_jax", "to_torch"]
