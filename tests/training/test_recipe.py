"""Every choice of a run, checked before the run."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from training.recipe import Recipe, as_options, make_recipe, parse_settings, read_recipe, recipe_table
from training.targets import age_distribution

DOCS = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_all_problems_are_listed_at_once() -> None:
    """Unknown names, wrong kinds, wrong ranges: one message for all."""
    with pytest.raises(ConfigError) as caught:
        make_recipe(
            {"epoch": 3, "batch": "many", "dropout": 1.5, "epochs": 2.5, "split": "x", "alpha": 0.6, "precision": "f16"}
        )
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 7
    for word in ("'epoch'", "batch", "dropout", "epochs", "split", "alpha", "precision"):
        assert word in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, [1], "1e400"])
def test_what_is_no_number_is_refused(value: object) -> None:
    """NaN and infinity are not within any range."""
    for name in ("learning_rate", "epochs"):
        with pytest.raises(ConfigError):
            make_recipe({name: value})


@given(st.integers(1, 1000), st.floats(1e-7, 1.0), st.sampled_from(["grouped", "validation", "seed", "fold3/10"]))
def test_a_recipe_survives_its_own_json(epochs: int, rate: float, split: str) -> None:
    """run.json can be given to --recipe."""
    recipe = make_recipe({"epochs": epochs, "learning_rate": rate, "split": split})
    assert make_recipe(json.loads(json.dumps(as_options(recipe)))) == recipe


def test_settings_are_read_as_their_options_kind() -> None:
    """`--set` gives words."""
    recipe = make_recipe(parse_settings(["epochs=3", "learning_rate=1e-3", "precision=mixed_bfloat16"]))
    assert (recipe.epochs, recipe.learning_rate, recipe.precision) == (3, 1e-3, "mixed_bfloat16")
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_settings(["epochs"])


def test_a_recipe_is_read_from_a_file_or_a_run(tmp_path: Path) -> None:
    """Both shapes, and neither."""
    (tmp_path / "own.json").write_text('{"epochs": 3}')
    (tmp_path / "run.json").write_text('{"recipe": {"epochs": 4}, "init": "none"}')
    (tmp_path / "list.json").write_text("[1]")
    assert read_recipe(tmp_path / "own.json") == {"epochs": 3}
    assert read_recipe(tmp_path / "run.json") == {"epochs": 4}
    for name in ("list.json", "missing.json"):
        with pytest.raises(ConfigError, match=name):
            read_recipe(tmp_path / name)


def test_a_recipe_cannot_be_changed() -> None:
    """A run is what it was started as."""
    with pytest.raises(FrozenInstanceError):
        Recipe().epochs = 3  # type: ignore[misc]


def test_a_margin_moves_the_landmarks_towards_the_middle() -> None:
    """More around the face is a smaller face."""
    near, far = Recipe().crop.landmarks, Recipe(margin_ratio=0.5).crop.landmarks
    for (x, y), (x_far, y_far) in zip(near, far, strict=True):
        assert (x_far - 0.5, y_far - 0.5) == pytest.approx(((x - 0.5) / 1.5, (y - 0.5) / 1.5))


def test_the_documentation_lists_every_option() -> None:
    """docs/training.md carries the table as it is printed here."""
    assert recipe_table() in DOCS.read_text(encoding="utf-8")


def test_the_default_recipe_knows_every_year_of_utkface() -> None:
    """117 years, 0 to 116."""
    import numpy as np  # noqa: PLC0415  only here

    assert age_distribution(np.array([0, 116], np.float32), Recipe()).shape == (2, 117)
