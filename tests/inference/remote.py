"""An engine in a process of its own, asked over a pipe: Keras runs on one back end per process, and this one has TensorFlow's."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from inference.predictor import Crops, Logits, Tolerance
from pipeline.errors import ConfigError
from pipeline.manifest import EngineName, Manifest

PATIENCE_S: Final = 150.0
FEW_SIZES: Final = (1, 16)  # each is compiled for seconds


def answer(pipe: Connection, folder: Path) -> None:
    """Open JAX's engine and answer batch after batch, until nobody asks any more."""
    os.environ["KERAS_BACKEND"] = "jax"
    from inference.jax_predictor import JaxPredictor  # noqa: PLC0415  in the other process only

    try:
        engine = JaxPredictor(folder, batch_sizes=FEW_SIZES)
    except ConfigError as error:
        pipe.send(str(error))
        return
    pipe.send((engine.manifest, tuple(engine.tolerance)))
    while (crops := pipe.recv()) is not None:
        pipe.send(tuple(engine.predict(crops)))


class RemoteJax:
    """The other process, as an engine. Raises ConfigError as the engine does."""

    name: Final[EngineName] = "jax"

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=answer, args=(theirs, folder), daemon=True)
        self._process.start()
        theirs.close()
        said = self._hear()
        if isinstance(said, str):
            self.close()
            raise ConfigError(said)
        assert isinstance(said, tuple)
        manifest, tolerance = said
        self.manifest: Manifest = manifest
        self.tolerance = Tolerance(*tolerance)

    def _hear(self) -> object:
        assert self._pipe.poll(PATIENCE_S), "JAX does not answer"
        return self._pipe.recv()

    def predict(self, crops: Crops) -> Logits:
        """Ask."""
        self._pipe.send(crops)
        said = self._hear()
        assert isinstance(said, tuple)
        return Logits(*said)

    def close(self) -> None:
        """Let it end."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(10)
        self._process.kill()
        self._pipe.close()
