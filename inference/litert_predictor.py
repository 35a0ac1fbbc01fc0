"""The network on LiteRT: int8 by XNNPACK, on a CPU.

Crop by crop, one interpreter a thread: at 112 px the layers of one crop fit the second-level cache and those of a batch do not.
On two cores a batch of 8 took 1.0 to 1.5 times as long per crop, one of 32 twice as long; and nothing has to be padded.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.native import without_native_stderr
from inference.predictor import EXACT, ROUNDED, Crops, Logits, Tolerance, core_count
from pipeline.attributes import ETHNICITIES, GENDERS
from pipeline.errors import ConfigError
from pipeline.manifest import EngineName, Manifest


class LitertPredictor:
    """A LiteRT file whose outputs are the logits of the three heads, told apart by their sizes."""

    name: Final[EngineName] = "litert"

    def __init__(self, model: bytes, manifest: Manifest, *, threads: int = 0) -> None:
        """Open the file's contents; *threads* 0 takes as many as cores. Raises ConfigError where it is no such model."""
        self.manifest = manifest
        threads = threads or core_count()
        try:
            with without_native_stderr():  # it tells of its delegate
                self._interpreters = [_Interpreter(model, manifest) for _ in range(threads)]
        except (ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"LiteRT cannot open the model ({str(error).splitlines()[0][:200]}); export it again"
            ) from None
        self.tolerance: Tolerance = ROUNDED if self._interpreters[0].takes_bytes else EXACT
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="litert") if threads > 1 else None

    def predict(self, crops: Crops) -> Logits:
        """Give the logits of every crop, in order; any number of crops, none included."""
        out = tuple(np.empty((len(crops), size), np.float32) for size in _sizes(self.manifest))
        shares = np.array_split(np.arange(len(crops)), min(len(crops), len(self._interpreters)) or 1)
        work = zip(self._interpreters, shares, strict=False)  # fewer crops than threads: the others rest
        if self._pool is None or len(shares) == 1:
            for interpreter, rows in work:
                interpreter.run(crops, rows, out)
        else:
            for done in [self._pool.submit(interpreter.run, crops, rows, out) for interpreter, rows in work]:
                done.result()
        return Logits(*out)


def _sizes(manifest: Manifest) -> tuple[int, int, int]:
    return manifest.ages[1] - manifest.ages[0] + 1, len(GENDERS), len(ETHNICITIES)


class _Interpreter:
    """One thread's; the weights are shared by none, 3.5 MB each in int8."""

    def __init__(self, model: bytes, manifest: Manifest) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  where LiteRT is used only

        self._interpreter: Any = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        [taken] = self._interpreter.get_input_details()
        side = manifest.crop.size_px
        if tuple(taken["shape"]) != (1, side, side, 3):
            raise ValueError(f"it takes {tuple(taken['shape'])}, not (1, {side}, {side}, 3)")
        self._taken, self._dtype = taken["index"], taken["dtype"]
        given = {int(each["shape"][-1]): each["index"] for each in self._interpreter.get_output_details()}
        self._given = [given[size] for size in _sizes(manifest)]

    @property
    def takes_bytes(self) -> bool:
        """Tell whether it is quantised."""
        return bool(self._dtype == np.uint8)

    def run(self, crops: Crops, rows: NDArray[np.int64], out: tuple[NDArray[np.float32], ...]) -> None:
        """Write the logits of *rows* into *out*."""
        for row in rows:
            self._interpreter.set_tensor(self._taken, crops[row : row + 1].astype(self._dtype, copy=False))
            self._interpreter.invoke()
            for head, index in zip(out, self._given, strict=True):
                head[row] = self._interpreter.get_tensor(index)[0]
