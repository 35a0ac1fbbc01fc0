"""The averaged weights, and the normalisation that belongs to them."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers

from training.model import build_model
from training.recipe import Recipe
from training.train import averaged_weights, batch_statistics, renew_normalisation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorFlow uses what numpy and Python deprecate
RECIPE = Recipe(size_px=32, alpha=0.35, head_units=8, frozen_blocks=16)
BATCHES = [np.random.default_rng(number).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8) for number in range(3)]


def normalisations(model: keras.Model) -> list[layers.BatchNormalization]:
    """Find every normalisation of the backbone."""
    [backbone] = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return [layer for layer in backbone.layers if isinstance(layer, layers.BatchNormalization)]


@pytest.mark.parametrize("for_training", [True, False], ids=["fused", "plain"])
def test_the_averages_become_the_mean_over_the_batches(*, for_training: bool) -> None:
    """Whatever they were before; frozen layers and the momentum of training stay as they are."""
    model = build_model(RECIPE, for_training=for_training)
    first_live = next(layer for layer in normalisations(model) if layer.trainable)
    frozen = normalisations(model)[0]
    assert not frozen.trainable
    first_live.moving_mean.assign(np.full(first_live.moving_mean.shape, 1e3))
    kept = np.array(frozen.moving_mean)
    [backbone] = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    before = keras.Model(backbone.input, first_live.input)
    seen = [np.asarray(before((batch / 127.5 - 1).astype(np.float32))).astype(np.float64) for batch in BATCHES]
    renew_normalisation(model, BATCHES, batch_statistics(model))
    wanted = np.mean([values.mean(axis=(0, 1, 2)) for values in seen], axis=0)
    spread = np.mean(
        [
            values.var(axis=(0, 1, 2), ddof=int(for_training and keras.backend.backend() == "tensorflow"))
            for values in seen
        ],
        axis=0,
    )
    np.testing.assert_allclose(first_live.moving_mean, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(first_live.moving_variance, spread, rtol=1e-2, atol=1e-4)
    np.testing.assert_array_equal(frozen.moving_mean, kept)
    assert first_live.momentum == 0.99


def test_the_model_s_own_weights_and_averages_come_back() -> None:
    """Judging an epoch leaves no trace in the training."""
    model = build_model(RECIPE, for_training=True)
    model.compile(optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), loss="mse")
    model.optimizer.build(model.trainable_variables)
    own = [np.array(each) for each in model.weights]
    averages = [each for each in model.optimizer.variables if each.path.endswith("_average")]
    for number, each in enumerate(averages):
        each.assign(np.full(each.shape, number / 100))
    with averaged_weights(model, BATCHES, batch_statistics(model)):
        within = [np.array(each) for each in model.trainable_variables]
        settled = np.array(normalisations(model)[-1].moving_mean)
    assert all(np.array_equal(one, other) for one, other in zip(own, model.weights, strict=True))
    assert all(np.allclose(values, number / 100) for number, values in enumerate(within))
    assert not np.allclose(settled, normalisations(model)[-1].moving_mean)
