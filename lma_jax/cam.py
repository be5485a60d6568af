"""What a network looks at: Grad-CAM (Selvaraju et al., ICCV 2017), Grad-CAM++ (Chattopadhay et al., WACV 2018), gates.

A class activation map weighs the channels of a feature map A by g, the gradient of a class's score (before the
softmax) at A:

    map = relu(sum_c weight_c A_c)        weight_c = mean_hw(g)                                            Grad-CAM
                                          weight_c = sum_hw(relu(g) g^2 / (2 g^2 + sum_hw(A) g^3 + eps))   Grad-CAM++
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lma_jax.errors import nearest
from lma_jax.intercept import intercept
from lma_jax.layers import SPATIAL_AXES, Network, widened
from lma_jax.lma import LMA


def _mean_gradient(activations: jax.Array, gradient: jax.Array) -> jax.Array:
    return gradient.mean(SPATIAL_AXES, keepdims=True)


def _positive_gradient(activations: jax.Array, gradient: jax.Array) -> jax.Array:
    """Grad-CAM++ as in pytorch-grad-cam 1.5.7, including its sum of the activations over space and its epsilon."""
    total = activations.sum(SPATIAL_AXES, keepdims=True)
    terms = gradient**3 / (2 * gradient**2 + total * gradient**3 + 1e-6)
    return jnp.where(gradient > 0, terms, 0).sum(SPATIAL_AXES, keepdims=True)


METHODS = {"gradcam++": _positive_gradient, "gradcam": _mean_gradient}


def grad_cam_plus_plus(model: Any, images: Any, class_ids: Any = None, *, layer: str | None = None) -> jax.Array:
    """Grad-CAM++: the evidence for a class at each pixel, scaled to [0, 1] for each image.

    The model is left as it is; the maps are those of its evaluation mode. Arguments and errors are those of
    `activation_map`.

    Returns:
        Maps (N, H, W) of the images' size.
    """
    maps, _ = activation_map(model, images, class_ids, layer=layer)
    return scale_and_resize(maps, images.shape[1:3])


def grad_cam(model: Any, images: Any, class_ids: Any = None, *, layer: str | None = None) -> jax.Array:
    """Grad-CAM: like `grad_cam_plus_plus`, but weighted by the mean gradient."""
    maps, _ = activation_map(model, images, class_ids, layer=layer, method="gradcam")
    return scale_and_resize(maps, images.shape[1:3])


def activation_map(
    model: Any, images: Any, class_ids: Any = None, *, layer: str | None = None, method: str = "gradcam++"
) -> tuple[jax.Array, jax.Array]:
    """The class activation maps before any scaling, and the scores.

    Args:
        model: a network for (N, H, W, 3), in either mode.
        images: normalised images (N, H, W, 3).
        class_ids: the class of each image (N,), or one for all; by default that of the highest score.
        layer: dotted path of the module whose output is the feature map, such as "layer3", "layer4.1" or
            "features.10"; by default the last feature map (what `forward_features` returns), or if that is a single
            pixel, the last one of at least 4 x 4.
        method: "gradcam++" or "gradcam".

    Returns:
        Maps (N, h, w) of the feature map's size, 0 or above, and logits (N, classes).

    Raises:
        ValueError: images of another shape or integers, no such layer (the message gives the nearest), a layer
            without a feature map, no such class or method.
    """
    images = jnp.asarray(images)
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating-point (N, H, W, 3), got {images.dtype} of shape {images.shape}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, did you mean {nearest(method, METHODS)!r}?")
    if layer is not None:
        _require_layer(model, layer)
    elif not hasattr(model, "forward_features"):
        raise ValueError(f"{type(model).__name__} has no forward_features and forward_head: name a layer")
    else:
        layer = earlier_layer(model, images)
    if class_ids is not None:
        class_ids = jnp.asarray(class_ids)
        if class_ids.shape not in ((), images.shape[:1]) or not jnp.issubdtype(class_ids.dtype, jnp.integer):
            raise ValueError(f"class_ids must be an integer or {len(images)} of them, got {class_ids}")
        class_ids = jnp.broadcast_to(class_ids, images.shape[:1])
    maps, logits = _activation_map(*nnx.split(model), images, class_ids, layer=layer, method=method)
    if class_ids is not None and not ((class_ids >= 0) & (class_ids < logits.shape[-1])).all():
        raise ValueError(f"class_ids must be in 0 to {logits.shape[-1] - 1}, got {class_ids}")
    return maps, logits


def earlier_layer(model: Any, images: jax.Array) -> str | None:
    """The last layer of the last feature map of at least 4 x 4, where the very last is a single pixel; else None."""
    size = max(images.shape[1:3])
    if not (isinstance(model, Network) and hasattr(model, "maps")) or size > model.feature_info[-1]["reduction"]:
        return None
    large = [info["module"] for info in model.feature_info if size > 3 * info["reduction"]]
    return large[-1] if large else None


def scale_and_resize(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Scales each map (N, h, w) to [0, 1] and resizes it bilinearly to `size`: (N, H, W)."""
    resized = jax.image.resize(_scale(maps), (len(maps), *size), "linear", antialias=False)
    return _scale(resized)  # again, since the extremes of the small map lie between the pixels of the large one


def gates(model: Any, images: Any, layers: Sequence[str]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The gates of LMA layers: by name, gate_h (N, h, 1, C) and gate_w (N, 1, w, C) in evaluation mode.

    Args:
        model: a network for (N, H, W, 3), in either mode; it is left as it is.
        images: normalised images (N, H, W, 3).
        layers: some of `lma_layers(model)`.

    Raises:
        ValueError: no such layer; the message gives the nearest.
    """
    for layer in layers:
        if layer not in lma_layers(model):
            raise ValueError(f"no LMA layer {layer!r}, did you mean {nearest(layer, lma_layers(model))!r}?")
    return _gates(*nnx.split(model), jnp.asarray(images), layers=tuple(layers))


def lma_layers(model: Any) -> list[str]:
    """The dotted paths of a network's LMA layers, from the first to the last."""
    paths = [path for path, module in nnx.iter_modules(model) if isinstance(module, LMA)]
    return [".".join(map(str, path)) for path in sorted(paths)]


def _scale(maps: jax.Array) -> jax.Array:
    maps = maps - maps.min(SPATIAL_AXES, keepdims=True)
    return maps / (1e-7 + maps.max(SPATIAL_AXES, keepdims=True))


def _require_layer(model: Any, layer: str) -> None:
    names = [".".join(map(str, path)) for path, _ in nnx.iter_modules(model) if path]
    if layer not in names:
        blocks = [name for name in names if name.count(".") < 2]
        raise ValueError(f"no layer {layer!r}, did you mean {nearest(layer, blocks)!r}?")


@partial(jax.jit, static_argnums=0, static_argnames=("layer", "method"))
def _activation_map(
    graphdef: Any, state: Any, images: jax.Array, class_ids: jax.Array | None, *, layer: str | None, method: str
) -> tuple[jax.Array, jax.Array]:
    model = _evaluating(graphdef, state)
    activations, head = _split_forward(model, images, layer)

    def score(activations: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = head(activations)
        chosen = logits.argmax(-1) if class_ids is None else class_ids
        return jnp.take_along_axis(logits, chosen[:, None], -1).sum(), logits

    gradient, logits = jax.grad(score, has_aux=True)(activations)
    activations, gradient = widened(activations), widened(gradient)
    weights = METHODS[method](activations, gradient)
    return nnx.relu((weights * activations).sum(-1)), logits


def _split_forward(
    model: Any, images: jax.Array, layer: str | None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """A feature map, and the rest of the network as a function of it."""
    if layer is None:
        return model.forward_features(images), model.forward_head
    outputs = {}

    def record(path: str, module: nnx.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        outputs[path] = call(*args, **kwargs)
        return outputs[path]

    intercept(model, record)(images)
    if layer not in outputs or outputs[layer].ndim != 4:
        raise ValueError(f"layer {layer!r} gives no feature map (N, h, w, C)")

    def head(activations: jax.Array) -> jax.Array:
        def replace(path: str, module: nnx.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
            return activations if path == layer else call(*args, **kwargs)

        return intercept(model, replace)(images)

    return outputs[layer], head


@partial(jax.jit, static_argnums=0, static_argnames="layers")
def _gates(graphdef: Any, state: Any, images: jax.Array, *, layers: tuple[str, ...]) -> Any:
    model = _evaluating(graphdef, state)
    found = {}

    def record(path: str, module: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        if path in layers:
            found[path] = module.gates(*args)
        return call(*args, **kwargs)

    intercept(model, record)(images)
    return found


def _evaluating(graphdef: Any, state: Any) -> Any:
    """A copy of a model in evaluation mode."""
    model = nnx.merge(graphdef, state)
    model.eval()
    return model
