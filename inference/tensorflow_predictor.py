"""The network on TensorFlow, on a CPU or a GPU: one compiled function, a few fixed batch shapes.

`model.predict` in a loop leaks and is slow.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from inference.keras_model import BATCH_SIZES, Precision, load_keras_model, run_padded
from inference.native import without_native_stderr
from inference.predictor import EXACT, ROUNDED, Crops, Logits, Tolerance
from pipeline.manifest import EngineName, Manifest, load_manifest, verified_weights


def _import_tensorflow() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:  # somebody wants to hear what it has to say
        import tensorflow  # noqa: ICN001, PLC0415  seconds to import, so only where it is used

        return tensorflow
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with without_native_stderr():
        import tensorflow  # noqa: ICN001, PLC0415

        tensorflow.config.list_physical_devices("GPU")
    return tensorflow


def graphics_cards() -> list[str]:
    """Name the GPUs that TensorFlow finds; it must be installed."""
    tensorflow = _import_tensorflow()
    details = tensorflow.config.experimental.get_device_details
    return [
        str(details(device).get("device_name", device.name))
        for device in tensorflow.config.list_physical_devices("GPU")
    ]


class TensorFlowPredictor:
    """A Keras model whose outputs are the logits of the three heads.

    On a GPU it is compiled by XLA and computes in 16 bits; on a CPU TensorFlow's own kernels (oneDNN) are faster than XLA's.
    """

    name: Final[EngineName] = "tensorflow"

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        batch_sizes: tuple[int, ...] = BATCH_SIZES,
        precision: Precision | None = None,
    ) -> None:
        """Load the model and check its digest. *threads* 0 leaves the number to TensorFlow. Raises ConfigError."""
        self.manifest: Manifest = load_manifest(folder)
        verified_weights(folder, self.manifest)  # before the seconds that TensorFlow takes
        tensorflow = _import_tensorflow()
        if threads:
            with contextlib.suppress(
                RuntimeError
            ):  # TensorFlow has started already in this process: it keeps what it has
                tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        gpus = tensorflow.config.list_physical_devices("GPU")
        for device in gpus:
            tensorflow.config.experimental.set_memory_growth(
                device, enable=True
            )  # before the first use: else it takes all
        precision = precision or ("mixed_float16" if gpus else "float32")
        self.tolerance: Tolerance = EXACT if precision == "float32" else ROUNDED
        self.model = model = load_keras_model(folder, self.manifest, "tensorflow", precision)
        self._sizes = batch_sizes
        self._constant = tensorflow.constant
        side = self.manifest.crop.size_px

        @tensorflow.function(
            input_signature=[tensorflow.TensorSpec((None, side, side, 3), tensorflow.uint8)],
            reduce_retracing=True,
            jit_compile=bool(gpus),
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
        return run_padded(lambda part: self._forward(self._constant(part)), crops, self._sizes)
