"""Batches come in order and are the same whoever makes them."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.errors import ConfigError
from training.dataset import Faces
from training.feeding import Feeder, steps_per_epoch
from training.recipe import Recipe
from training.targets import make_targets

RECIPE = Recipe(size_px=48, batch=32, mixup=0.3, seed=3)


def pictured(faces: Faces) -> Faces:
    """Give each face a picture of its own."""
    pictures = [
        cv2.imencode(".png", np.full((48, 48, 3), number, np.uint8))[1].tobytes() for number in range(len(faces))
    ]
    return replace(faces, jpegs=tuple(pictures))


def copied(feeder: Feeder, epoch: int, most: int | None = None) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Keep an epoch's batches, which are overwritten as it goes on."""
    return [
        (crops.copy(), {name: values.copy() for name, values in wanted.items()})
        for crops, wanted in feeder.batches(epoch, most)
    ]


def test_one_process_and_three_give_the_same_epoch(faces: Faces) -> None:
    """Crops and labels, in the same order, an epoch that was left early before it or not; all faces' worth of them."""
    known = pictured(faces)
    targets = make_targets(known, RECIPE)
    with Feeder(known, targets, RECIPE, workers=1) as one:
        expected = copied(one, 1)
    with Feeder(known, targets, RECIPE, workers=3) as three:
        begun = three.batches(0)
        next(begun)
        begun.close()
        found = copied(three, 1)
        first = copied(three, 1, most=2)
    assert len(expected) == len(found) == steps_per_epoch(len(faces), RECIPE) == 7
    assert len(first) == 2
    for (crops, wanted), (other, said) in [*zip(expected, found, strict=True), *zip(expected, first, strict=False)]:
        assert crops.shape == (32, 48, 48, 3)
        np.testing.assert_array_equal(crops, other)
        assert list(wanted) == ["age", "gender", "ethnicity"]  # nothing to foretell beside them
        for name, values in wanted.items():
            np.testing.assert_array_equal(values, said[name])
    assert not np.array_equal(expected[0][0], expected[1][0])


def test_a_process_that_was_killed_is_told_of(faces: Faces) -> None:
    """What happened, and what to do; not a broken pool's words."""
    known = pictured(faces)
    with Feeder(known, make_targets(known, RECIPE), RECIPE, workers=1) as feeder:
        begun = feeder.batches(0)
        next(begun)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(ConfigError, match=r"want of memory.*the run goes on"):
            list(begun)
