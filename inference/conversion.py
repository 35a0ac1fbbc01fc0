"""A Keras model to the files that other engines read.

Softmax and expectation stay outside, in heads.py: inside an int8 graph, ages were up to 4.8 years off.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from inference.predictor import Crops, Logits


def freeze(model: Any, side: int) -> Any:
    """Freeze the network into a graph without variables: from a live one the converter makes a file that gives NaN."""
    import tensorflow as tf  # noqa: PLC0415  seconds, where there is something to convert only
    from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415
        convert_variables_to_constants_v2,
    )

    @tf.function(input_signature=[tf.TensorSpec((1, side, side, 3), tf.float32, name="image")])  # type: ignore[untyped-decorator]  # TensorFlow ships no types
    def forward(image: Any) -> tuple[Any, ...]:
        out = model(image, training=False)
        return tuple(out[name] for name in Logits._fields)

    return convert_variables_to_constants_v2(forward.get_concrete_function())


def to_litert(frozen: Any, calibration: Crops | None) -> bytes:
    """Convert to LiteRT, one crop at a time: float32 in, or bytes in and int8 with the ranges seen on *calibration*."""
    import tensorflow as tf  # noqa: PLC0415  as above

    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([crop[None].astype(np.float32)] for crop in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.float32
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)  # bytes in is what we ask for
        return bytes(converter.convert())


def to_onnx(model: Any, side: int, path: Path) -> Path:
    """Write the network as ONNX, any number of crops at a time; gives *path*."""
    import keras  # noqa: PLC0415  after the back end has been chosen

    crops = keras.InputSpec(shape=(None, side, side, 3), dtype="float32", name="image")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"In the future `np\.object`", FutureWarning)  # Keras asks numpy for it
        model.export(path, format="onnx", verbose=False, input_signature=[crops])
    return path


def spanning(crops: Crops) -> Crops:
    """Give *crops* with both ends of the scale in one of them, so that the quantised input is exactly the byte."""
    crops = crops.copy()
    crops[-1, 0, 0], crops[-1, 0, 1] = 0, 255
    return crops
