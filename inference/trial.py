"""One engine tried in a process of its own: `python -m inference.trial`, a TrialRequest on stdin, a Trial on stdout."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from inference.engines import FILES, Trial, TrialRequest, construct
from inference.golden import Golden, judge, read_golden
from inference.predictor import Crops, NamedEngine
from pipeline.errors import ConfigError
from pipeline.manifest import EngineName, load_manifest

ROUNDS: Final = 5
ROUND_S: Final = 0.2
"""A figure is the best of so many rounds of at least so long: machines are noisy, and nothing runs faster than it can."""


def rate(engine: NamedEngine, crops: Crops, *, rounds: int = ROUNDS, round_s: float = ROUND_S) -> float:
    """Give the most faces a second that *engine* reached with batches of *crops*, once warm."""
    engine.predict(crops)
    best = 0.0
    for _ in range(rounds):
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < round_s or not done:
            engine.predict(crops)
            done += len(crops)
        best = max(best, done / spent)
    return best


def convert(model: Any, names: tuple[EngineName, ...], golden: Golden, files: Path) -> None:
    """Write what the engines *names* read into *files*, from TensorFlow's *model*."""
    from inference.conversion import freeze, spanning, to_litert, to_onnx  # noqa: PLC0415  TensorFlow's trial only

    side = golden.crops.shape[1]
    for name in names:
        part = files / f"{os.getpid()}-{FILES[name]}"
        if name == "litert":
            part.write_bytes(to_litert(freeze(model, side), spanning(golden.calibration)))
        else:
            to_onnx(model, side, part)
        part.rename(files / FILES[name])


def run(request: TrialRequest) -> Trial:
    """Do what is asked; what is in the way is said, not raised."""
    folder, files, name = Path(request.folder), Path(request.files), request.engine
    try:
        if name == "jax" and (problem := _without_accelerator()):
            return Trial(name, problem=problem)
        engine = construct(name, folder, files, threads=request.threads)
        manifest = load_manifest(folder)
        golden = read_golden(folder, manifest)
        if golden is None:
            return Trial(name, problem="the model has no golden batch")
        convert(getattr(engine, "model", None), request.convert, golden, files)
        if not request.measure:
            return Trial(name)
        found = judge(engine, golden, manifest)
        batch = golden.crops[np.arange(request.max_batch) % len(golden.crops)]
        return Trial(
            name,
            agreement=found,
            agrees=found.within(engine.tolerance),
            faces_per_s=rate(engine, batch),
            single_faces_per_s=rate(engine, batch[:1]),
        )
    except ConfigError as error:
        return Trial(name, problem=str(error))


def _without_accelerator() -> str:
    import jax  # noqa: PLC0415  JAX's trial only

    if jax.default_backend() != "cpu":
        return ""
    return (
        "JAX finds no accelerator; on a CPU it compiles for a minute and is not the fastest: set the engine to have it"
    )


def main() -> None:
    """Answer one request."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=TrialRequest)
    os.environ["KERAS_BACKEND"] = "jax" if request.engine == "jax" else "tensorflow"
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    with os.fdopen(answer, "wb") as out:
        out.write(msgspec.json.encode(run(request)) + b"\n")


if __name__ == "__main__":
    main()
