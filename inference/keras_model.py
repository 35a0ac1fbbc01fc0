"""What the engines that run Keras itself have in common, TensorFlow and JAX: the model, its precision, few batch shapes.

Every new batch shape would be traced and compiled anew: batches are padded to the next of a few sizes, and longer ones are cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from inference.predictor import Crops, Logits
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest, verified_weights

BATCH_SIZES: Final = (1, 4, 16, 32, 64)
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]


def padded_size(count: int, sizes: tuple[int, ...] = BATCH_SIZES) -> int:
    """Give the smallest of *sizes* that holds *count*, or the largest of them."""
    return next((size for size in sizes if size >= count), sizes[-1])


def run_padded(forward: Callable[[Crops], tuple[Any, ...]], crops: Crops, sizes: tuple[int, ...]) -> Logits:
    """Run *forward*, which gives the three heads of a batch of one of *sizes*, over any number of crops, none included."""
    largest, parts = sizes[-1], []
    for start in range(0, max(1, len(crops)), largest):
        part = crops[start : start + largest]
        count, size = len(part), padded_size(max(1, len(part)), sizes)
        if count < size:
            padded = np.zeros((size, *crops.shape[1:]), np.uint8)
            padded[:count] = part
            part = padded
        parts.append([np.asarray(head, np.float32)[:count] for head in forward(part)])
    return Logits(*(np.concatenate(heads) for heads in zip(*parts, strict=True)))


def load_keras_model(folder: Path, manifest: Manifest, backend: str, precision: Precision) -> Any:
    """Load the verified weights with Keras on *backend*, which one process has one of. Raises ConfigError."""
    weights = verified_weights(folder, manifest)
    os.environ.setdefault("KERAS_BACKEND", backend)
    import keras  # noqa: PLC0415  after the back end has been chosen

    if keras.backend.backend() != backend:
        raise ConfigError(
            f"Keras runs on {keras.backend.backend()} in this process; unset KERAS_BACKEND to run the model on {backend}"
        )
    try:
        model = keras.models.load_model(weights, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"model {weights}: Keras cannot load it ({type(error).__name__}); export it again") from error
    return model if precision == "float32" else _with_precision(model, precision)


def _with_precision(model: Any, precision: Precision) -> Any:
    """Clone *model* to compute in 16 bits; the weights, the rescaling of the pixels and the logits stay in 32."""
    import keras  # noqa: PLC0415  as above

    exact = {"Rescaling", "InputLayer"}

    def changed(layer: Any) -> Any:
        config = layer.get_config()
        if type(layer).__name__ not in exact and layer.name not in Logits._fields:
            config["dtype"] = precision
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=changed, recursive=True)
    clone.set_weights(model.get_weights())
    return clone
