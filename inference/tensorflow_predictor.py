"""The network on TensorFlow, on a CPU or a GPU: one compiled function, a few fixed batch shapes.

`model.predict` in a loop leaks and is slow, and every new batch shape would be traced and compiled anew: batches are padded
to the next of a few sizes, and longer ones are cut.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.predictor import Crops, Logits
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest, load_manifest, verified_weights

BATCH_SIZES: Final = (1, 4, 16, 32, 64)


def padded_size(count: int, sizes: tuple[int, ...] = BATCH_SIZES) -> int:
    """Give the smallest of *sizes* that holds *count*, or the largest of them."""
    return next((size for size in sizes if size >= count), sizes[-1])


def _import_tensorflow() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:  # somebody wants to hear what it has to say
        import tensorflow  # noqa: ICN001, PLC0415  seconds to import, so only where it is used

        return tensorflow
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with _without_native_stderr():
        import tensorflow  # noqa: ICN001, PLC0415

        tensorflow.config.list_physical_devices("GPU")
    return tensorflow


@contextlib.contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Silence what native code writes to stderr: that there is no GPU, four times, before any log level holds.

    What goes wrong comes as an exception all the same.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def graphics_cards() -> list[str]:
    """Name the GPUs that TensorFlow finds; it must be installed."""
    tensorflow = _import_tensorflow()
    details = tensorflow.config.experimental.get_device_details
    return [
        str(details(device).get("device_name", device.name))
        for device in tensorflow.config.list_physical_devices("GPU")
    ]


class TensorFlowPredictor:
    """A Keras model whose outputs are the logits of the three heads."""

    def __init__(self, folder: Path, *, threads: int = 0, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> None:
        """Load the model and check its digest. *threads* 0 leaves the number to TensorFlow. Raises ConfigError."""
        self.manifest: Manifest = load_manifest(folder)
        weights = verified_weights(folder, self.manifest)
        tensorflow = _import_tensorflow()
        import keras  # noqa: PLC0415  after the back end has been chosen

        if keras.backend.backend() != "tensorflow":
            raise ConfigError(
                f"Keras runs on {keras.backend.backend()} here; unset KERAS_BACKEND to serve with TensorFlow"
            )
        if threads:
            with contextlib.suppress(
                RuntimeError
            ):  # TensorFlow has started already in this process: it keeps what it has
                tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        for device in tensorflow.config.list_physical_devices("GPU"):
            tensorflow.config.experimental.set_memory_growth(
                device, enable=True
            )  # before the first use: else it takes all
        try:
            model = keras.models.load_model(weights, compile=False, safe_mode=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"model {weights}: Keras cannot load it ({type(error).__name__}); export it again"
            ) from error
        self._sizes = batch_sizes
        self._constant = tensorflow.constant
        side = self.manifest.crop.size_px

        @tensorflow.function(
            input_signature=[tensorflow.TensorSpec((None, side, side, 3), tensorflow.uint8)], reduce_retracing=True
        )
        def forward(crops: Any) -> tuple[Any, Any, Any]:
            out = model(tensorflow.cast(crops, tensorflow.float32), training=False)
            return out["age"], out["gender"], out["ethnicity"]

        self._forward: Callable[[Any], tuple[Any, Any, Any]] = forward

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Run every batch size once, so that no crop waits for a compilation; *progress* gets (done, of)."""
        side = self.manifest.crop.size_px
        for done, size in enumerate(self._sizes, start=1):
            self.predict(np.zeros((size, side, side, 3), np.uint8))
            if progress:
                progress(done, len(self._sizes))

    def predict(self, crops: Crops) -> Logits:
        """Give the logits of every crop, in order; any number of crops, none included."""
        largest = self._sizes[-1]
        parts = [self._run(crops[start : start + largest]) for start in range(0, max(1, len(crops)), largest)]
        return Logits(*(np.concatenate(heads) for heads in zip(*parts, strict=True)))

    def _run(self, crops: Crops) -> tuple[NDArray[np.float32], ...]:
        count = len(crops)
        size = padded_size(max(1, count), self._sizes)
        if count < size:
            padded = np.zeros((size, *crops.shape[1:]), np.uint8)
            padded[:count] = crops
            crops = padded
        return tuple(np.asarray(head)[:count] for head in self._forward(self._constant(crops)))
