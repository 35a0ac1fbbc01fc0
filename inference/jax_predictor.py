"""The network on JAX, by Keras: one function compiled by XLA, a few fixed batch shapes. For a GPU or TPU that JAX knows.

One process has one back end of Keras: this engine runs where TensorFlow's does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from inference.keras_model import BATCH_SIZES, Precision, load_keras_model, run_padded
from inference.predictor import EXACT, ROUNDED, Crops, Logits, Tolerance
from pipeline.manifest import EngineName, Manifest, load_manifest, verified_weights


class JaxPredictor:
    """A Keras model whose outputs are the logits of the three heads.

    In float32 unless said otherwise: on an H100 bfloat16 is a fifth faster, and puts ages half a year off (docs/engines.md).
    """

    name: Final[EngineName] = "jax"

    def __init__(
        self, folder: Path, *, batch_sizes: tuple[int, ...] = BATCH_SIZES, precision: Precision = "float32"
    ) -> None:
        """Load the model and check its digest. XLA takes the threads that it finds. Raises ConfigError."""
        self.manifest: Manifest = load_manifest(folder)
        verified_weights(folder, self.manifest)  # before the seconds that JAX takes
        import jax  # noqa: PLC0415  where it is used only

        self.tolerance: Tolerance = EXACT if precision == "float32" else ROUNDED
        model = load_keras_model(folder, self.manifest, "jax", precision)
        from inference.jax_convolutions import with_products  # noqa: PLC0415  imports Keras, whose back end is chosen now

        model = with_products(model)
        self._sizes = batch_sizes
        # The weights are arguments: as constants they would be folded anew for every batch size.
        weights = tuple(
            [variable.value for variable in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        )

        def forward(trainable: Any, fixed: Any, crops: Any) -> tuple[Any, ...]:
            out, _ = model.stateless_call(trainable, fixed, crops.astype("float32"), training=False)
            return tuple(out[name] for name in Logits._fields)

        compiled = jax.jit(forward)
        self.forward: Callable[[Crops], tuple[Any, ...]] = lambda crops: compiled(*weights, crops)

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compile every batch size, so that no crop waits for it; *progress* gets (done, of)."""
        side = self.manifest.crop.size_px
        for done, size in enumerate(self._sizes, start=1):
            self.predict(np.zeros((size, side, side, 3), np.uint8))
            if progress:
                progress(done, len(self._sizes))

    def predict(self, crops: Crops) -> Logits:
        """Give the logits of every crop, in order; any number of crops, none included."""
        return run_padded(self.forward, crops, self._sizes)
