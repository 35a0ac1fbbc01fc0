"""MobileNetV2's convolutions as what XLA is good at: matrix products and sums of shifted pictures; for JAX.

A 1x1 convolution is a matrix product over all pixels. A depthwise 3x3 one is nine products with a weight for each channel, which
XLA fuses into one pass over the picture, with whatever stands before and after. As convolutions they would go to cuDNN on a GPU,
whose algorithms XLA tries one by one, up to 40 seconds for each batch size; on a CPU they take eight times as long.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


class PointwiseProduct(layers.Conv2D):  # type: ignore[misc]  # Keras ships no types
    """Keras' convolution with a 1x1 kernel, with the same weights, as a matrix product."""

    def call(self, inputs: Any) -> Any:
        """Convolve (n, height, width, channels)."""
        product = ops.matmul(inputs, ops.cast(self.kernel, self.compute_dtype)[0, 0])
        return product if self.bias is None else product + ops.cast(self.bias, self.compute_dtype)


class ShiftedDepthwise(layers.DepthwiseConv2D):  # type: ignore[misc]
    """Keras' depthwise convolution, with the same weights, as a sum of shifted pictures."""

    def call(self, inputs: Any) -> Any:
        """Convolve (n, height, width, channels); without bias, as MobileNetV2's are."""
        height, width = self.kernel_size
        step = self.strides[0]
        kernel = ops.cast(self.kernel, self.compute_dtype)[..., 0]
        if self.padding == "same":
            inputs = ops.pad(inputs, [(0, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0)])
        rows, columns = (inputs.shape[1] - height) // step + 1, (inputs.shape[2] - width) // step + 1
        return sum(
            inputs[:, top : top + (rows - 1) * step + 1 : step, left : left + (columns - 1) * step + 1 : step]
            * kernel[top, left]
            for top in range(height)
            for left in range(width)
        )


def _fitting(layer: Any) -> type[Any]:
    kind: type[Any] = type(layer)
    if kind is layers.Conv2D and layer.kernel_size == (1, 1) and layer.strides == (1, 1) and layer.groups == 1:
        return PointwiseProduct
    if (
        kind is layers.DepthwiseConv2D
        and layer.depth_multiplier == 1
        and not layer.use_bias
        and (layer.padding == "valid" or (layer.strides == (1, 1) and all(size % 2 for size in layer.kernel_size)))
        and layer.strides[0] == layer.strides[1]
        and layer.dilation_rate == (1, 1)
        and layer.data_format == "channels_last"
    ):
        return ShiftedDepthwise
    return kind


def with_products(model: Any) -> Any:
    """Clone *model* with these layers in the place of the convolutions that they can stand for; the weights are its own."""
    clone = keras.models.clone_model(
        model, clone_function=lambda layer: _fitting(layer).from_config(layer.get_config()), recursive=True
    )
    clone.set_weights(model.get_weights())
    return clone
