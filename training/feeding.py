"""Batches of degraded crops, made a few ahead on processes of their own, in memory that they share with the network's.

Degrading a face takes longer than a GPU takes to learn from it, and much of it holds Python's lock: threads would not do.
Each step's faces and degradations follow from the recipe's seed and the step's number alone, whoever makes them.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import get_context
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from training.augmentation import degrade, step_generator
from training.dataset import Faces
from training.recipe import Recipe
from training.targets import Targets, draw_epoch, drawing_weights, mixed_up

Batch = tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]
"""Crops (n, side, side, 3), RGB, and the soft labels by head. They are overwritten once the next batch is asked for."""

_AHEAD: Final = 2  # batches for each process


def steps_per_epoch(count: int, recipe: Recipe) -> int:
    """Count the steps that show as many faces as there are; the last batch is filled from the first."""
    return -(-count // recipe.batch)


class _Slot:
    """Room for one batch in shared memory, the *number*-th of *room*."""

    def __init__(self, room: Any, number: int, recipe: Recipe, widths: tuple[int, ...]) -> None:
        side, batch = recipe.size_px, recipe.batch
        size, begin = batch * side * side * 3, number * self.bytes(recipe, widths)
        self.crops = np.frombuffer(room, np.uint8, size, offset=begin).reshape(batch, side, side, 3)
        labels = np.frombuffer(room, np.float32, batch * sum(widths), offset=begin + size).reshape(batch, sum(widths))
        self.targets = Targets(*np.split(labels, np.cumsum(widths)[:-1], axis=1))

    @staticmethod
    def bytes(recipe: Recipe, widths: tuple[int, ...]) -> int:
        """Say how much room a batch takes."""
        return recipe.batch * (recipe.size_px**2 * 3 + 4 * sum(widths))


class _Maker:
    """What one of the processes knows."""

    def __init__(self, faces: Faces, targets: Targets, recipe: Recipe, slots: list[_Slot]) -> None:
        self._faces = faces
        self._targets = targets
        self._recipe = recipe
        self._slots = slots

    def make(self, number: int, rows: NDArray[np.int64], step: int) -> None:
        """Fill slot *number* with the faces *rows* as the run's step *step* shows them."""
        recipe, slot = self._recipe, self._slots[number]
        crops = self._faces.crops(rows)
        for place, crop in enumerate(crops):
            crops[place] = degrade(crop, step_generator(recipe.seed, step, place), recipe.augmentation)
        wanted = Targets(*(values[rows] for values in self._targets))
        blender = step_generator(recipe.seed, step, recipe.batch)  # a place that no crop has
        blended, wanted = mixed_up(crops, wanted, blender, recipe.mixup)
        slot.crops[...] = blended
        for room, values in zip(slot.targets, wanted, strict=True):
            room[...] = values


_maker: _Maker | None = None


def _begin(faces: Faces, targets: Targets, recipe: Recipe, room: Any, count: int) -> None:
    """Start a process: from now on it knows the faces."""
    global _maker  # noqa: PLW0603  a pool's process has nowhere else to keep what all its work needs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains ends us
    cv2.setNumThreads(1)
    widths = tuple(values.shape[1] for values in targets)
    _maker = _Maker(faces, targets, recipe, [_Slot(room, number, recipe, widths) for number in range(count)])


def _make(number: int, rows: NDArray[np.int64], step: int) -> None:
    assert _maker is not None, "every process begins with _begin"
    _maker.make(number, rows, step)


class Feeder(AbstractContextManager["Feeder"]):
    """The batches of a run over *faces* and their *targets*, made on *workers* processes until it is closed."""

    def __init__(self, faces: Faces, targets: Targets, recipe: Recipe, workers: int) -> None:
        self._recipe = recipe
        self._steps = steps_per_epoch(len(faces), recipe)
        self._weights = drawing_weights(faces, recipe)
        context = get_context("spawn")  # a fork would copy the locks of the network's threads
        widths = tuple(values.shape[1] for values in targets)
        count = _AHEAD * workers + 1
        # In one piece: Python looks whether there is room for a piece in /dev/shm, which a container has little of.
        room = context.RawArray("B", count * _Slot.bytes(recipe, widths))
        self._slots = [_Slot(room, number, recipe, widths) for number in range(count)]
        self._pool = ProcessPoolExecutor(workers, context, _begin, (faces, targets, recipe, room, count))

    def batches(self, epoch: int, most: int | None = None) -> Generator[Batch, None, None]:
        """Give the batches of one epoch (from 0), in order; the first *most* of them.

        Raises ConfigError where a process that makes them died.
        """
        recipe, steps = self._recipe, self._steps
        rows = draw_epoch(self._weights, seed=recipe.seed, epoch=epoch)
        free = deque(range(len(self._slots)))
        waiting: deque[tuple[int, Future[None]]] = deque()
        following = iter(range(steps if most is None else min(most, steps)))

        def begin() -> None:
            if (step := next(following, None)) is not None:
                some = np.take(rows, np.arange(step * recipe.batch, (step + 1) * recipe.batch), mode="wrap")
                number = free.popleft()
                waiting.append((number, self._pool.submit(_make, number, some, epoch * steps + step)))

        try:
            for _ in range(len(free)):
                begin()
            while waiting:
                number, done = waiting.popleft()
                done.result()
                slot = self._slots[number]
                yield slot.crops, {name: values for name, values in slot.targets._asdict().items() if values.shape[1]}
                free.append(number)
                begin()
        except BrokenProcessPool:
            raise ConfigError(
                "a process that degrades the faces was ended from outside, most likely for want of memory; take a smaller "
                "--batch or fewer cores (taskset), and give the same command again: the run goes on"
            ) from None
        finally:
            for _, done in waiting:  # an epoch that was left early: nobody may write into a slot that is given out anew
                done.cancel() or done.exception()

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)
