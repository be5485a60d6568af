"""The benchmark of the LMA layer: what it compares is equal, and the compiled layer reads and writes little."""

import jax
import numpy as np
import torch

from measurements import lma_layer, roofline
from measurements.lma_layer import FeatureMap


def test_the_layer_and_its_textbook_form_give_the_same_output_and_gradients():
    calls = lma_layer.variants(FeatureMap(6, 5, batch_size=2))
    output, gradients = calls["textbook"].forward(), calls["textbook"].backward()
    for name in ("textbook channels_last", "torch", "torch channels_last"):
        torch.testing.assert_close(calls[name].forward(), output)
        for gradient, expected in zip(calls[name].backward(), gradients, strict=True):
            torch.testing.assert_close(gradient, expected)
    np.testing.assert_allclose(
        np.asarray(calls["jax"].forward()).transpose(0, 3, 1, 2), output.numpy(), rtol=1e-5, atol=1e-6
    )
    pixels, parameters = calls["jax"].backward()
    np.testing.assert_allclose(np.asarray(pixels).transpose(0, 3, 1, 2), gradients[0].numpy(), rtol=1e-4, atol=1e-5)
    kernels = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(parameters)]
    np.testing.assert_allclose(kernels, [grad.numpy().ravel() for grad in gradients[1:]], rtol=1e-4, atol=1e-5)


def test_the_compiled_layer_moves_the_map_about_four_times():
    """Two reads for the profiles, one read and one write to gate the map; profiles and gates come on top."""
    assert 4 <= roofline.passes(FeatureMap(64, 56, batch_size=2)) < 5
