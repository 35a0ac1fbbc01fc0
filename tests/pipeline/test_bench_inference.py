"""The peers are the networks that they stand for, and what is counted is what a network does."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from ingest.detection import open_detection
from pipeline.bench import gpu
from pipeline.bench.detect import _crowd, measure_detection
from pipeline.bench.inference import _apart, _byte_product, _peer, operations_of

pytest.importorskip("onnx", reason="the peers are written with the package onnx, of the extra `training`")


def test_face_apis_network_has_the_size_of_the_published_file() -> None:
    """age_gender_model-weights_manifest.json of @vladmandic/face-api 1.7.15 lists 421,731 weights."""
    from pipeline.bench.peers import face_api  # noqa: PLC0415  needs onnx

    assert face_api().parameters == 421_731
    assert _peer("face_api", 2, 1, 1) > 0


@pytest.mark.slow
def test_deepfaces_network_has_vggs_size() -> None:
    """VGG-16's convolutions (14.7 million), 7x7x512 to 4096, 4096 to 4096, and 101 ages."""
    from pipeline.bench.peers import deepface_vgg  # noqa: PLC0415  needs onnx

    assert deepface_vgg().parameters == 14_714_688 + 102_764_544 + 16_781_312 + 4096 * 101 + 101


def test_operations_are_two_for_each_weight_wherever_it_is_used() -> None:
    """Counted by hand: 8x8 places of 3x3x3 to 4; by channel 3x3; 4 to 5; and a network within a network."""
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.DepthwiseConv2D(3, padding="same")])
    picture = keras.Input((8, 8, 3))
    x = inner(keras.layers.Conv2D(4, 3, padding="same")(picture))
    model = keras.Model(picture, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
    assert operations_of(model) == 2 * (64 * 27 * 4 + 64 * 9 * 4 + 4 * 5)


def test_a_product_of_bytes_is_measured() -> None:
    """More than nothing."""
    assert _byte_product(1, 1) > 0


def _threads_after_a_product() -> list[str]:
    """Multiply matrices that are large enough for every thread there is; give the cores that each may use."""
    a = np.ones((1024, 1024), np.float32)
    a @ a
    tasks = Path("/proc/self/task").glob("*/status")
    lines = [line for task in tasks for line in task.read_text().splitlines() if line.startswith("Cpus_allowed_list")]
    return [line.partition(":")[2].strip() for line in lines]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
def test_what_is_measured_on_a_core_stays_on_it() -> None:
    """Also the threads that numpy starts as it is loaded: else the limit of one core is what all of them reach."""
    before, cores = dict(os.environ), os.sched_getaffinity(0)
    core = min(cores)
    assert set(_apart([core], _threads_after_a_product)) == {str(core)}
    assert (dict(os.environ), os.sched_getaffinity(0)) == (before, cores)


def test_both_detectors_are_measured_on_a_picture_with_faces() -> None:
    """The same picture, one row a size."""
    assert len(open_detection("auto")(640).detect(_crowd())) == 8
    figures = measure_detection(rounds=1)
    assert [figure.unit for figure in figures] == ["frames/s"] * 3
    assert all(figure.value > 0 and figure.peer_value for figure in figures)


def test_values_moved_are_what_goes_in_and_out() -> None:
    """Counted by hand: 8x8x3 to 8x8x4; 8x8x4 to the same by channel; their sum; the mean's 4 to 5."""
    picture = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 3, padding="same")(picture)
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.DepthwiseConv2D(3, padding="same")])
    x = keras.layers.Add()([first, inner(first)])
    model = keras.Model(picture, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
    assert gpu.values_moved(model) == 64 * (3 + 4) + 64 * (4 + 4) + 3 * 64 * 4 + (4 + 5)


@pytest.mark.slow
def test_the_card_s_part_says_every_figure_and_nothing_where_there_is_no_card() -> None:
    """Tried on JAX's CPU: both precisions, on the card, from memory, from JPEGs, each beside its limit."""
    pytest.importorskip("jax", reason="JAX is not installed")
    sizes = gpu.Sizes(batches=(2,), product=64, copied=1 << 12, rounds=1)
    rows = gpu.in_its_own_process(sizes=sizes, any_device=True)
    assert [row.figure.partition(",")[0] for row in rows] == ["jax"] * 6
    assert {row.figure.split(", ")[1] for row in rows} == {"float32", "bfloat16"}
    assert all(row.value > 0 and row.limit and row.limit_of for row in rows)
    assert [row.figure for row in rows if "JPEG" in row.figure] == [rows[2].figure, rows[5].figure]
    assert gpu.in_its_own_process(sizes=sizes, any_device=False) == []
