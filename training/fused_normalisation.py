"""Batch normalisation by TensorFlow's one fused kernel, for training; what is kept is Keras' own layer.

S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015. Keras 3 works out moments, scale and shift one after the other,
each a pass over the whole activation, and on a CPU that is most of MobileNetV2's training step.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import layers


class FusedBatchNormalization(layers.BatchNormalization):  # type: ignore[misc]  # Keras ships no types
    """Keras' layer over the last of four axes, with the same weights, by `FusedBatchNormV3`."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: ARG002, FBT001  Keras' own signature
        """Normalise (n, height, width, channels); in training by the batch, moving the averages."""
        learns = bool(training) and self.trainable
        nothing = tf.zeros([0])
        out = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma.value, tf.float32),
            offset=tf.cast(self.beta.value, tf.float32),
            mean=nothing if learns else self.moving_mean.value,
            variance=nothing if learns else self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=learns,
        )
        if learns:
            for kept, seen in ((self.moving_mean, out.batch_mean), (self.moving_variance, out.batch_variance)):
                kept.assign(kept * self.momentum + seen * (1 - self.momentum))
        return out.y
