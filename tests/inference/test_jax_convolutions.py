"""The products that stand for convolutions answer as Keras' own layers, whatever runs them."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from inference.jax_convolutions import PointwiseProduct, ShiftedDepthwise, with_products

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorFlow uses what numpy and Python deprecate


@settings(deadline=None, max_examples=25)
@given(
    side=st.integers(3, 9),
    channels=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5]),
    step=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_clone_says_what_the_model_says(
    side: int, channels: int, kernel: int, step: int, padding: str, bias: bool, seed: int
) -> None:
    """Any depthwise and pointwise convolution, whether a product can stand for it or not."""
    kernel = min(kernel, side)
    generator = np.random.default_rng(seed)
    picture = keras.Input((side, side, channels))
    x = layers.DepthwiseConv2D(kernel, strides=step, padding=padding, use_bias=bias)(picture)
    model = keras.Model(picture, layers.Conv2D(3, 1, use_bias=bias)(x))
    model.set_weights([generator.normal(size=each.shape) for each in model.get_weights()])
    batch = generator.normal(size=(2, side, side, channels)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(with_products(model)(batch)), np.asarray(model(batch)), rtol=1e-4, atol=1e-4)


def test_mobilenet_is_made_of_products_but_for_its_stem() -> None:
    """Nested models included, weights in the same order."""
    backbone = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
    picture = keras.Input((32, 32, 3))
    model = keras.Model(picture, layers.GlobalAveragePooling2D()(backbone(picture)))
    clone = with_products(model)
    [inner] = [layer for layer in clone.layers if isinstance(layer, keras.Model)]
    kinds = {kind: sum(type(layer) is kind for layer in inner.layers) for kind in (PointwiseProduct, ShiftedDepthwise)}
    assert kinds == {PointwiseProduct: 34, ShiftedDepthwise: 17}
    assert [layer.name for layer in inner.layers if type(layer) in (layers.Conv2D, layers.DepthwiseConv2D)] == ["Conv1"]
    for one, other in zip(model.get_weights(), clone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
