"""Every person once, measured: tracks against the truth of films that are hard to count, each played twice without a break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.tracking import measure
from pipeline.settings import Settings

Scene = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crossing", "occlusion", "lights-out", "backs", "poster-excluded", "empty"])
def test_a_hard_scene_is_counted_person_by_person(tmp_path: Path, name: str) -> None:
    """Crossing, hidden for a second, in the dark for four: one track a person, nobody in another's; nobody where nobody is."""
    figures = measure(name, tmp_path, Settings())
    print(f"{name}: {figures}")  # noqa: T201
    assert figures.visitors == figures.people
    assert figures.purity >= 0.97
    assert figures.merged == figures.nobody == 0


@pytest.mark.slow
def test_faces_of_15_px_are_counted_where_frames_are_searched_at_their_own_size(tmp_path: Path) -> None:
    """At half the size they are not found, which docs/tracking.md says."""
    figures = measure("tiny", tmp_path, Settings(), max_side_px=1280)
    assert figures.visitors == figures.people
    assert figures.merged == figures.nobody == 0


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["lobby", "rush"])
def test_a_labelled_scene_over_rtsp_is_counted_person_by_person(scene: Scene, name: str) -> None:
    """At 25 fps in real time: within 3 % of the truth, purity at least 0.97, at most 1.03 tracks a person."""
    film, _ = scene(name)
    figures = measure(str(film), film.parent, Settings(), rtsp=True)
    print(f"{name}: {figures}")  # noqa: T201
    assert figures.count_error <= 0.03
    assert figures.purity >= 0.97
    assert figures.tracks_per_person <= 1.03
    assert figures.merged == 0
