"""How good the answers are, against scikit-learn and by laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from inference.heads import Heads, softmax
from inference.predictor import Logits
from pipeline.attributes import AGE_BANDS, ETHNICITIES
from training.dataset import Faces
from training.metrics import (
    accuracy,
    age_coverage,
    age_figures,
    balanced_accuracy,
    bands_of,
    bootstrap,
    confusion,
    face_size,
    fit_share,
    fit_temperature,
    fit_temperatures,
    groups_of,
    intervals,
    negative_log_likelihood,
    per_class,
    reliability,
    summary,
)

labels = st.integers(1, 80).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(0, 4), min_size=count, max_size=count),
        st.lists(st.integers(0, 4), min_size=count, max_size=count),
    )
)
ages = st.lists(st.tuples(st.floats(0, 116), st.integers(0, 116)), min_size=1, max_size=50)


# scikit-learn remarks on what Hypothesis draws on purpose: one label only, or a class that never occurs.
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@settings(deadline=None)
@given(labels)
def test_class_figures_are_scikit_learn_s(drawn: tuple[list[int], list[int]]) -> None:
    """Confusion, accuracy, balanced accuracy, precision, recall, F1."""
    said, true = (np.array(each, np.int64) for each in drawn)
    matrix = confusion(said, true, 5)
    assert (matrix == reference.confusion_matrix(true, said, labels=range(5))).all()
    assert accuracy(matrix) == pytest.approx(reference.accuracy_score(true, said))
    assert balanced_accuracy(matrix) == pytest.approx(reference.balanced_accuracy_score(true, said))
    wanted = reference.precision_recall_fscore_support(true, said, labels=range(5), zero_division=0)
    found = per_class(matrix, ETHNICITIES)
    for row, label in enumerate(ETHNICITIES):
        figures = [found[label][key] for key in ("precision", "recall", "f1", "n")]
        assert figures == pytest.approx([each[row] for each in wanted])


@given(ages)
def test_age_figures_are_scikit_learn_s(drawn: list[tuple[float, int]]) -> None:
    """MAE and MSE; and MAE is never above the root of MSE, bias never above MAE."""
    said, true = (np.array(each, np.float64) for each in zip(*drawn, strict=True))
    found = age_figures(said, true)
    assert found["age_mae"] == pytest.approx(reference.mean_absolute_error(true, said))
    assert found["age_mse"] == pytest.approx(reference.mean_squared_error(true, said))
    assert abs(found["age_bias"]) <= found["age_mae"] + 1e-9
    assert found["age_mae"] <= np.sqrt(found["age_mse"]) + 1e-9
    assert 0 <= found["age_cs5"] <= 1


@given(ages, st.floats(-20, 20))
def test_saying_everyone_older_moves_the_bias_by_as_much(drawn: list[tuple[float, int]], years: float) -> None:
    """Bias is said minus true."""
    said, true = (np.array(each, np.float64) for each in zip(*drawn, strict=True))
    moved = age_figures(said + years, true)["age_bias"]
    assert moved == pytest.approx(age_figures(said, true)["age_bias"] + years, abs=1e-6)


def test_five_years_off_is_within_five_years() -> None:
    """CS@5 includes its edge."""
    assert age_figures(np.array([25.0, 25.1]), np.array([20.0, 20.0]))["age_cs5"] == 0.5


def test_no_faces_have_no_figures() -> None:
    """Better an error than a NaN in a report."""
    with pytest.raises(ValueError, match="no faces"):
        age_figures(np.array([]), np.array([]))


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    """Nine of ten right at 0.9; and all of them right at 0.9 is 0.1 off."""
    probability = np.tile([0.9, 0.1], (10, 1))
    true = np.array([0] * 9 + [1])
    assert reliability(probability, true)["ece"] == pytest.approx(0)
    found = reliability(probability, np.zeros(10, np.int64))
    assert found["ece"] == pytest.approx(0.1)
    assert found["bins"] == [{"n": 10, "confidence": pytest.approx(0.9), "accuracy": 1.0}]


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_calibration_error_is_a_share_and_bins_count_every_face(seed: int) -> None:
    """Whatever is said."""
    generator = np.random.default_rng(seed)
    probability = softmax(generator.normal(0, 3, (50, 5)).astype(np.float32))
    found = reliability(probability, generator.integers(0, 5, 50))
    assert 0 <= found["ece"] <= 1
    assert sum(row["n"] for row in found["bins"]) == 50


def draw_calibrated(count: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw logits and labels that follow them exactly."""
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, (count, classes)).astype(np.float32)
    chances = softmax(logits).cumsum(axis=1)
    true = (generator.random((count, 1)) > chances).sum(axis=1)
    return logits, np.minimum(true, classes - 1).astype(np.int64)


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(heat: float) -> None:
    """Logits blown up by 2.5 want to be divided by 2.5; then they surprise least and are calibrated."""
    logits, true = draw_calibrated(8000, 5)
    found = fit_temperature(logits * np.float32(heat), true)
    assert found == pytest.approx(heat, rel=0.05)
    assert negative_log_likelihood(logits, true, 1.0) <= negative_log_likelihood(logits, true, 1.5)
    assert reliability(softmax(logits * np.float32(heat), found), true)["ece"] < 0.02


def test_every_head_gets_a_temperature(faces: Faces) -> None:
    """By name, as the manifest wants them."""
    generator = np.random.default_rng(0)
    logits = Logits(*(generator.normal(0, 1, (200, size)).astype(np.float32) for size in (117, 2, 5)))
    assert set(fit_temperatures(logits, faces, (0, 116))) == {"age", "gender", "ethnicity"}


def test_a_right_age_distribution_covers_what_it_promises() -> None:
    """Ages drawn from the predicted distributions lie in the middle half half of the time."""
    generator = np.random.default_rng(0)
    means, years = generator.uniform(30, 70, 4000), np.arange(117)
    probability = softmax((-0.5 * ((years - means[:, None]) / 6) ** 2).astype(np.float32))
    true = np.rint(generator.normal(means, 6)).astype(np.float32)
    found = age_coverage(probability, true, 0)
    for level in ("0.5", "0.8", "0.9"):
        assert found[level] == pytest.approx(float(level), abs=0.03)


def test_intervals_hold_the_figure_and_narrow_with_more_faces() -> None:
    """And are the same for the same seed."""
    generator = np.random.default_rng(0)
    widths = []
    for count in (50, 5000):
        values = generator.normal(10, 3, count)
        found = bootstrap({"x": values}, times=300)
        low, high = found["x"]
        assert low < values.mean() < high
        assert bootstrap({"x": values}, times=300) == found
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_a_constant_has_no_width() -> None:
    """Every sample of ones is ones."""
    assert bootstrap({"x": np.ones(10)}, times=20) == {"x": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("side", "name"),
    [
        (0, "not found"),
        (1, "under 32 px"),
        (31.9, "under 32 px"),
        (32, "32-63 px"),
        (95, "64-95 px"),
        (127, "96-127 px"),
        (128, "128 px and more"),
    ],
)
def test_a_face_size_has_a_name(side: float, name: str) -> None:
    """Bands include their lower end."""
    assert face_size(side) == name


def test_groups_hold_every_face_once_per_kind(faces: Faces) -> None:
    """By age band, gender, ethnicity and face size."""
    groups = groups_of(faces)
    assert set(groups) == {"age_band", "gender", "ethnicity", "face_size"}
    for each in groups.values():
        assert sorted(np.concatenate(list(each.values()))) == list(range(len(faces)))


def test_bands_are_those_of_the_live_system() -> None:
    """9.9 is a nine-year-old."""
    assert [AGE_BANDS[row] for row in bands_of(np.array([9.9, 10, 64.9, 65, 116]))] == [
        "0-9",
        "10-17",
        "55-64",
        "65+",
        "65+",
    ]


def test_a_perfect_model_has_perfect_figures(faces: Faces) -> None:
    """Everything right, and its intervals too."""
    heads = Heads(
        faces.age.astype(np.float64), np.ones(200), faces.gender.astype(np.float64), np.eye(5)[faces.ethnicity]
    )
    found = summary(heads, faces)
    assert found["n"] == 200
    assert (found["age_mae"], found["gender_accuracy"], found["ethnicity_balanced_accuracy"]) == (0, 1, 1)
    assert intervals(heads, faces, times=20)["gender_accuracy"] == [1, 1]


def test_the_share_of_a_shift_is_found_again() -> None:
    """Labels drawn from the logits less 0.7 of the shift."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1, (20_000, 4)).astype(np.float32)
    shift = np.array([1.5, 0.2, -0.4, 0], np.float32)
    chances = softmax(logits - np.float32(0.7) * shift)
    true = (chances.cumsum(axis=1) < generator.random((len(chances), 1))).sum(axis=1)
    assert fit_share(logits, shift, true) == pytest.approx(0.7, abs=0.05)
    assert fit_share(logits, -shift, true) == pytest.approx(0, abs=0.01)
