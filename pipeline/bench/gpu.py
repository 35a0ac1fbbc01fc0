"""What a face costs on a GPU, by precision and batch, beside what the card's memory and arithmetic allow, and with JPEGs opened.

The network runs on JAX, in a process of its own. Crops in the machine's memory are what a service has: pixels go over, and logits
come back.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec
import numpy as np

from inference.engines import installed
from inference.keras_model import Precision
from inference.pixels import decode_crop
from inference.predictor import core_count
from ingest.alignment import encode_jpeg
from pipeline.bench.inference import operations_of
from pipeline.bench.rows import Row, Workbench, best_rate
from pipeline.errors import ConfigError
from pipeline.manifest import DEFAULT_MODEL, load_manifest

PART: Final = "gpu"
BATCHES: Final = (1, 32, 64, 512, 2048)
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "mixed_bfloat16")
PRODUCT_SIDE: Final = 8192  # of the plain matrix product
COPIED: Final = 1 << 28  # float32 values of the plain copy
AHEAD: Final = 8  # batches in one round


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured; less where it is only tried."""

    batches: tuple[int, ...] = BATCHES
    product: int = PRODUCT_SIDE
    copied: int = COPIED
    rounds: int = 3


def measure(bench: Workbench) -> list[Row]:
    """Measure the model of the settings. Raises ConfigError where JAX, or a card that it knows, is missing."""
    if not installed("jax"):
        raise ConfigError(
            "bench --only gpu: JAX is not installed; pip install 'demographics[jax]' and the JAX of your card"
        )
    rows = in_its_own_process(bench.settings.inference.model, Sizes(), any_device=False, say=bench.progress)
    if not rows:
        raise ConfigError(
            "bench --only gpu: JAX finds no accelerator here; install the JAX of your card, or leave this part out"
        )
    return rows


def in_its_own_process(
    folder: Path = DEFAULT_MODEL,
    sizes: Sizes = Sizes(),  # noqa: B008  frozen
    *,
    any_device: bool,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure in a fresh process, since one has one back end of Keras. Nothing where there is no card and *any_device* is not."""
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        for precision in PRECISIONS:
            say(f"{precision}: a minute")
            rows += process.submit(_rows, folder, sizes, precision, any_device=any_device).result()
    return rows


def values_moved(model: Any) -> int:
    """Count the values of one picture that a Keras model's convolutions, products and sums must read and write, each once."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):
            total += values_moved(layer)
        elif type(layer).__name__ in {"Conv2D", "DepthwiseConv2D", "Dense"}:
            total += math.prod(layer.input.shape[1:]) + math.prod(layer.output.shape[1:])
        elif type(layer).__name__ == "Add":
            total += 3 * math.prod(layer.output.shape[1:])
    return total


# ── what runs in the process of its own ───────────────────────────────────────────────────────────────────────────────────


def _rows(folder: Path, sizes: Sizes, precision: Precision, *, any_device: bool) -> list[Row]:
    os.environ["KERAS_BACKEND"] = "jax"
    import jax  # noqa: PLC0415  in this process only

    if jax.default_backend() == "cpu" and not any_device:
        return []
    from inference.jax_predictor import JaxPredictor  # noqa: PLC0415
    from inference.keras_model import load_keras_model  # noqa: PLC0415

    model = load_keras_model(folder, load_manifest(folder), "jax", "float32")
    dtype, bytes_each = ("float32", 4) if precision == "float32" else ("bfloat16", 2)
    arithmetic = _product(dtype, sizes) / operations_of(model)
    memory = _copy(sizes) / (bytes_each * values_moved(model))
    limit = min(arithmetic, memory)
    limit_of = (
        f"the less of {arithmetic:,.0f} by a plain {dtype} matrix product and {memory:,.0f} by a plain copy on the card"
    )
    engine = JaxPredictor(folder, batch_sizes=sizes.batches, precision=precision)
    rows = []
    for size in sizes.batches:
        crops = np.random.default_rng(0).integers(0, 256, (size, *_shape(folder)), dtype=np.uint8)
        there = jax.device_put(crops)
        times = max(1, 4096 // size)

        def alone(crops: Any = there, times: int = times, size: int = size) -> int:
            jax.block_until_ready([engine.forward(crops) for _ in range(times)])
            return times * size

        def whole(crops: Any = crops, times: int = times, size: int = size) -> int:
            for _ in range(times):
                engine.predict(crops)
            return times * size

        what = f"jax, {dtype}, batch {size}"
        for where, work in (("crops on the card", alone), ("crops in the machine's memory", whole)):
            reached = best_rate(work, sizes.rounds)
            rows.append(Row(PART, f"{what}, {where}", reached, "faces/s", limit=limit, limit_of=limit_of))
    return [*rows, *_with_jpeg(engine, folder, sizes, dtype)]


def _shape(folder: Path) -> tuple[int, int, int]:
    side = load_manifest(folder).crop.size_px
    return side, side, 3


def _product(dtype: str, sizes: Sizes) -> float:
    """Operations a second of a plain matrix product."""
    import jax  # noqa: PLC0415

    a = jax.random.normal(jax.random.key(0), (sizes.product, sizes.product)).astype(dtype)
    multiply = jax.jit(lambda a: a @ a)

    def work() -> int:
        jax.block_until_ready([multiply(a) for _ in range(4)])
        return 4 * 2 * sizes.product**3

    return best_rate(work, sizes.rounds)


def _copy(sizes: Sizes) -> float:
    """Bytes a second, read and written, of a plain pass over much memory."""
    import jax  # noqa: PLC0415

    a = jax.numpy.zeros(sizes.copied, jax.numpy.float32)
    add = jax.jit(lambda a: a + 1)

    def work() -> int:
        jax.block_until_ready([add(a) for _ in range(4)])
        return 4 * 2 * 4 * sizes.copied

    return best_rate(work, sizes.rounds)


def _with_jpeg(engine: Any, folder: Path, sizes: Sizes, dtype: str) -> list[Row]:
    """From JPEGs to logits: every core opens the next batch while the card works on this one."""
    recipe, size, cores = load_manifest(folder).crop, sizes.batches[-1], core_count()
    small = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    jpeg = encode_jpeg(
        np.asarray(cv2.resize(small, (recipe.size_px, recipe.size_px), interpolation=cv2.INTER_CUBIC), np.uint8), recipe
    )
    rooms = np.empty((2, size, *_shape(folder)), np.uint8)
    cv2.setNumThreads(1)

    def opened(room: Any, first: int) -> None:
        for place in range(first, size, cores):
            room[place] = decode_crop(jpeg, recipe.size_px)

    with ThreadPoolExecutor(cores) as pool:

        def opening() -> int:
            for number in range(AHEAD):
                list(pool.map(opened, [rooms[number % 2]] * cores, range(cores)))
            return AHEAD * size

        def both() -> int:
            pending: Any = None
            for number in range(AHEAD):
                list(pool.map(opened, [rooms[number % 2]] * cores, range(cores)))
                if pending is not None:
                    np.asarray(pending[0])
                pending = engine.forward(rooms[number % 2])
            np.asarray(pending[0])
            return AHEAD * size

        alone = best_rate(opening, sizes.rounds)
        together = best_rate(both, sizes.rounds)
    return [
        Row(
            PART, f"jax, {dtype}, batch {size}, from JPEGs of {len(jpeg):,} bytes", together, "faces/s",
            limit=alone, limit_of=f"{cores} cores open JPEGs, nothing else",
        )
    ]  # fmt: skip
