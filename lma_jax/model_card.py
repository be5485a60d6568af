"""The model card of a folder of the Hugging Face Hub: what it says about the network itself, in Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from lma_jax.errors import visible
from lma_jax.hub_folder import LABELS, Description

IN_BOTH = """\
JAX, channels last:

```python
import jax.numpy as jnp
from flax import nnx

from lma_jax import from_pretrained

model = from_pretrained({source}, rngs=nnx.Rngs(0))
logits = model(jnp.zeros((1, {size}, {size}, {in_chans})))  # (1, {outputs})
```

PyTorch, channels first:

```python
import torch

from lma_torch import from_pretrained

model = from_pretrained({source})
logits = model(torch.zeros(1, {in_chans}, {size}, {size}))  # (1, {outputs})
```
"""
IN_TIMM = """
timm and transformers read the folder as well:

```python
import timm
import torch

model = timm.create_model({timm_source}, pretrained=True).eval()
logits = model(torch.zeros(1, {in_chans}, {size}, {size}))
```
"""
IMAGES = """\
The shorter side is resized to {resize_size} pixels (bilinear, with antialiasing), and the central {image_size} x \
{image_size} pixels are taken. \
Values from 0 to 1 are normalised by the mean {mean} and the standard deviation {std}.
"""


def model_card(
    description: Description,
    *,
    source: str,
    facts: Mapping[str, Any] | None = None,
    sections: Mapping[str, str] | None = None,
) -> str:
    """The text of README.md.

    Args:
        description: the network.
        source: how the usage names it: "org/name", or the name of the folder.
        facts: further keys of the front matter, which JSON can hold.
        sections: further sections by title.
    """
    front = {
        "library_name": "lma-attention",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "lma", "jax", "flax", "pytorch", *(["timm"] if description.timm_name else [])],
        **(facts or {}),
    }
    own = {"Use": usage(description, source), "Images and classes": _images(description)}
    text = [f"## {title}\n\n{content.strip()}\n" for title, content in {**own, **(sections or {})}.items()]
    lines = ["---", *(f"{key}: {_yaml(value)}" for key, value in front.items()), "---", ""]
    return "\n".join([*lines, f"# {description.model}\n", *text])


def usage(description: Description, source: str) -> str:
    """The code that loads the network."""
    text = IN_BOTH + (IN_TIMM if description.timm_name else "")
    return text.format(
        source=json.dumps(source, ensure_ascii=False),
        timm_source=json.dumps(f"{'hf-hub' if '/' in source else 'local-dir'}:{source}", ensure_ascii=False),
        size=description.preprocessing.image_size,
        in_chans=description.in_chans,
        outputs=description.num_classes or description.num_features,
    )


def table(rows: Mapping[str, Any], *, heading: tuple[str, str]) -> str:
    """A table of two columns."""
    lines = [f"| {' | '.join(heading)} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {cell(name)} | {cell(value)} |" for name, value in rows.items())])


def _yaml(value: Any) -> str:
    """A value as JSON, which is YAML as well, except for characters that YAML wants escaped in its own way."""
    return visible(json.dumps(value, ensure_ascii=False))


def cell(value: Any) -> str:
    """A value in a table of Markdown."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _images(description: Description) -> str:
    images = description.preprocessing
    lists = {"mean": list(images.mean), "std": list(images.std)}
    known = f", named in `{LABELS}` and `config.json`" if description.class_names is not None else ""
    return (
        IMAGES.format(**{**vars(images), **lists}) + f"\nThe network has {description.num_classes:,} classes{known}.\n"
    )
