"""What the process from which commands are forked has imported, in the environment of the README's install."""

from importlib import import_module

from tests.helpers.extras import README_EXTRAS, Hider

LIBRARIES = ("flax.nnx", "grain", "ml_collections", "optax", "tensorflow_datasets", "tensorstore", "torch")

HIDER = Hider(README_EXTRAS)
HIDER.hide()
for name in LIBRARIES:
    import_module(name)
HIDER.reveal()
