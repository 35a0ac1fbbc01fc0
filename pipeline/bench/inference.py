"""What a face costs in the network: by engine, batch and threads, beside its peers and what the machine's arithmetic allows.

Everything is measured in one run, each in a process of its own that is held to its cores, so that neither the threads nor the
memory of one get in the way of another.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from inference.engines import installed, open_engine
from inference.trial import rate
from pipeline.bench.rows import Row, Workbench
from pipeline.manifest import DEFAULT_MODEL, ENGINES, EngineName, load_manifest

BATCHES: Final = (1, 8, 16, 32, 128)
FACE_API_BATCH: Final = 16
DEEPFACE_NETWORKS: Final = 3
PRODUCT_SIDE: Final = 1536  # of the plain matrix products


PART: Final = "inference"


def measure(bench: Workbench) -> list[Row]:
    """Measure the model of the settings."""
    return measure_inference(bench.settings.inference.model, say=bench.progress)


def measure_inference(
    folder: Path = DEFAULT_MODEL, *, say: Callable[[str], None] = lambda _: None, rounds: int = 3, round_s: float = 0.5
) -> list[Row]:
    """Measure every engine that is installed, on one core and on two; each rate is the best of *rounds*."""
    cores = sorted(os.sched_getaffinity(0))
    figures: list[Row] = []
    for threads in sorted({1, min(2, len(cores))}):
        figures += _at(folder, cores[:threads], say, rounds, round_s)
    return figures


def _at(folder: Path, cores: list[int], say: Callable[[str], None], rounds: int, round_s: float) -> list[Row]:
    """Measure with one thread for each of *cores*."""
    threads = len(cores)
    on = f"{threads} thread{'s' if threads > 1 else ''}"

    apart = partial(_apart, cores)
    say(f"matrix products, {on}")
    peak = apart(_float_product, rounds)
    bytes_peak = apart(_byte_product, threads, rounds) if find_spec("onnx") else None
    say(f"TensorFlow's model.predict, {on}")
    plain, operations = apart(_plain_predict, folder, threads, rounds, round_s)
    batch, plain_rate = max(plain.items(), key=lambda each: each[1])
    plain_name = f"TensorFlow model.predict, batch {batch}"
    figures = [
        Row(PART, f"{plain_name}, {on}", plain_rate, "faces/s", limit=peak / operations, limit_of=_limit("float32"))
    ]
    best: tuple[float, str] = (0.0, "")
    at_16: tuple[float, str] = (0.0, "")
    for name in ENGINES:
        if not installed(name) or (name == "jax" and not _accelerator()):
            continue
        say(f"{name}, {on}")
        operations_per_s = bytes_peak if name == "litert" else peak
        for size, reached in apart(_engine, name, folder, threads, rounds, round_s).items():
            figures.append(
                Row(
                    PART, f"{name}, batch {size}, {on}", reached, "faces/s", plain_name, plain_rate,
                    limit=operations_per_s / operations if operations_per_s else None,
                    limit_of=_limit("int8" if name == "litert" else "float32"),
                )
            )  # fmt: skip
            best = max(best, (reached, f"{name}, batch {size}"))
            if size == FACE_API_BATCH:
                at_16 = max(at_16, (reached, f"{name}, batch {size}"))
    if find_spec("onnx"):
        say(f"face-api.js' and deepface's networks, {on}")
        theirs = apart(_peer, "face_api", FACE_API_BATCH, threads, rounds)
        figures.append(
            Row(
                PART, f"three heads, {at_16[1]}, {on}", at_16[0], "faces/s",
                f"face-api.js, age and gender, batch {FACE_API_BATCH}, in ONNX Runtime", theirs,
            )
        )  # fmt: skip
        theirs = apart(_peer, "deepface_vgg", 1, threads, rounds) / DEEPFACE_NETWORKS
        figures.append(
            Row(
                PART, f"three heads, {best[1]}, {on}", best[0], "faces/s",
                "deepface, age, gender and race: three VGG-16, in ONNX Runtime", theirs,
            )
        )  # fmt: skip
    return figures


def _limit(arithmetic: str) -> str:
    return f"the multiplications of a face at the rate of a plain {arithmetic} matrix product"


def _accelerator() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


# ── what runs in processes of their own ───────────────────────────────────────────────────────────────────────────────────


def _apart(cores: Sequence[int], work: Callable[..., Any], *arguments: object) -> Any:
    """Do *work* in a process of its own that is held to *cores*, with all the threads that its libraries start."""
    context = multiprocessing.get_context("spawn")
    with _surroundings(cores), ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(work, *arguments).result()


@contextmanager
def _surroundings(cores: Sequence[int]) -> Iterator[None]:
    """Be, for a while, what a process on *cores* is to inherit: once it runs it is too late, numpy has started its threads."""
    before, held = dict(os.environ), os.sched_getaffinity(0)
    os.environ.pop("KERAS_BACKEND", None)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ.update(dict.fromkeys(names, str(len(cores))), TF_CPP_MIN_LOG_LEVEL="3")
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, held)
        os.environ.clear()
        os.environ.update(before)


def _most(work: Callable[[], float], rounds: int) -> float:
    """Give the most units a second that *work*, which says how many it did, reached in several rounds."""
    work()
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - start))
    return best


def _float_product(rounds: int) -> float:
    """Floating-point operations a second of a plain matrix product in float32."""
    a = np.random.default_rng(0).random((PRODUCT_SIDE, PRODUCT_SIDE), np.float32)

    def work() -> float:
        a @ a
        return 2.0 * PRODUCT_SIDE**3

    return _most(work, rounds)


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime  # noqa: PLC0415  in the other process only

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _byte_product(threads: int, rounds: int) -> float:
    """Operations a second of a plain matrix product of bytes, in ONNX Runtime."""
    from pipeline.bench.peers import int8_product  # noqa: PLC0415  needs the package onnx

    session = _session(int8_product(PRODUCT_SIDE), threads)
    a = np.random.default_rng(0).integers(0, 256, (PRODUCT_SIDE, PRODUCT_SIDE), dtype=np.uint8)

    def work() -> float:
        session.run(None, {"a": a})
        return 2.0 * PRODUCT_SIDE**3

    return _most(work, rounds)


def _crops(folder: Path, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    side = load_manifest(folder).crop.size_px
    return np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)


def _engine(name: EngineName, folder: Path, threads: int, rounds: int, round_s: float) -> dict[int, float]:
    """Faces a second of an engine, by batch."""
    engine = open_engine(name, folder, threads=threads)
    return {size: rate(engine, _crops(folder, size), rounds=rounds, round_s=round_s) for size in BATCHES}


def _plain_predict(folder: Path, threads: int, rounds: int, round_s: float) -> tuple[dict[int, float], float]:
    """Faces a second of Keras' own predict, by batch, and the operations that a face takes."""
    from inference.tensorflow_predictor import TensorFlowPredictor  # noqa: PLC0415  in the other process only

    model = TensorFlowPredictor(folder, threads=threads).model
    found = {}
    for size in BATCHES:
        crops = _crops(folder, size).astype(np.float32)

        def work(crops: Any = crops, size: int = size) -> float:
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < round_s or not done:
                model.predict(crops, batch_size=size, verbose=0)
                done += size
            return float(done)

        found[size] = _most(work, rounds)
    return found, float(operations_of(model))


def operations_of(model: Any) -> int:
    """Count the multiplications and additions of one picture in a Keras model: two for each weight, wherever it is used."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):
            total += operations_of(layer)
        elif type(layer).__name__ in {"Conv2D", "DepthwiseConv2D"}:
            kernel = layer.kernel.shape  # height, width, taken, given; or the multiplier where it is by channel
            _, height, width, channels = layer.output.shape
            each = kernel[0] * kernel[1] * (kernel[2] if type(layer).__name__ == "Conv2D" else 1)
            total += 2 * height * width * channels * each
        elif type(layer).__name__ == "Dense":
            total += 2 * int(np.prod(layer.kernel.shape))
    return int(total)


def _peer(name: str, batch: int, threads: int, rounds: int) -> float:
    """Faces a second of another project's network."""
    from pipeline.bench import peers  # noqa: PLC0415  needs the package onnx

    peer: peers.Peer = getattr(peers, name)()
    session = _session(peer.model, threads)
    pictures = np.random.default_rng(0).random((batch, 3, peer.side, peer.side), np.float32)

    def work() -> float:
        session.run(None, {"image": pictures})
        return float(batch)

    return _most(work, rounds)
