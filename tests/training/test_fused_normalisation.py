"""The fused normalisation of training answers as Keras' own layer, which is the one that is kept."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it is TensorFlow's kernel")


def test_fused_and_plain_normalisation_agree_in_training_and_after_it() -> None:
    """Same outputs by the batch's moments, same averages but for Bessel's correction, same outputs by the averages."""
    from training.fused_normalisation import FusedBatchNormalization  # noqa: PLC0415  there is TensorFlow only here

    generator = np.random.default_rng(0)
    batch = generator.normal(3, 2, (16, 8, 8, 5)).astype(np.float32)
    plain, fused = (kind(momentum=0.9, epsilon=1e-3) for kind in (layers.BatchNormalization, FusedBatchNormalization))
    for layer in (plain, fused):
        layer.build(batch.shape)
        layer.gamma.assign([0.5, 1, 1.5, 2, 2.5])
        layer.beta.assign([-1, 0, 1, 2, 3])
    for _ in range(3):
        one, other = (np.asarray(layer(batch, training=True)) for layer in (plain, fused))
        assert np.allclose(one, other, atol=1e-4)
    assert [each.path.split("/")[-1] for each in plain.weights] == [each.path.split("/")[-1] for each in fused.weights]
    for one, other in zip(plain.get_weights(), fused.get_weights(), strict=True):
        assert np.allclose(one, other, rtol=2e-3, atol=1e-3)
    fused.set_weights(plain.get_weights())
    assert np.allclose(np.asarray(plain(batch)), np.asarray(fused(batch)), atol=1e-4)
    fused.trainable = False  # a frozen layer uses the averages, and leaves them alone
    before = fused.get_weights()
    assert np.allclose(np.asarray(fused(batch, training=True)), np.asarray(plain(batch)), atol=1e-4)
    assert all(np.array_equal(one, other) for one, other in zip(before, fused.get_weights(), strict=True))
