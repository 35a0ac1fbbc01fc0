"""From a film to the report: everything in one process, by the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.composer import compose, load_cast
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from tests.e2e.conftest import ROOT, clean_environment
from tests.e2e.scene_labels import label_figures, matched, visitors_of
from tests.servers import free_port

Command = Callable[..., Any]
Scene = Callable[[str], tuple[Path, dict[str, Any]]]


def test_a_film_of_the_demo_is_counted_person_by_person(command: Command, tmp_path: Path) -> None:
    """Six people walk by; six visitors, everybody in one cell of every breakdown, no frame left out."""
    clip = compose(tmp_path / "walk.mp4", load_cast(), view="hall", people=6, seconds=20, seed=5)
    report = command("run", "--source", clip.path, "--until-end", "--json").json()
    assert report["visitors"] == len(report["tracks"])
    assert abs(report["visitors"] - len(clip.passages)) <= 1
    assert report["cameras"]["walk"]["frames"] == clip.seconds * clip.fps
    assert set(report["gender"]) == set(GENDERS)
    assert set(report["age_band"]) == set(AGE_BANDS)
    assert set(report["ethnicity"]) == set(ETHNICITIES)
    for attribute in ("gender", "age_band", "ethnicity"):
        assert sum(report[attribute].values()) + report["unknown"] == report["visitors"]
    people = [vars(passage) for passage in clip.passages]
    times = [(track["first_seen"], track["last_seen"]) for track in report["tracks"]]
    for row, column in matched(times, people):
        track, person = report["tracks"][row], people[column]
        seen_s = track["last_seen"] - track["first_seen"]
        assert 0.4 < seen_s < person["leave_s"] - person["enter_s"] + 1.5
        assert track["crops"] >= 1


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "least", "most"), [("lobby", 11, 13), ("rush", 27, 33)])
def test_a_labelled_scene_is_counted_and_described(scene: Scene, name: str, least: int, most: int) -> None:
    """Visitors, gender and age of real faces, against the truth; a visitor is described better than a single crop."""
    film, truth = scene(name)
    closed = visitors_of(film)
    figures = label_figures(closed, truth["people"])
    print(f"{name}: {len(closed)} of {len(truth['people'])}, {figures}")  # noqa: T201
    assert least <= len(closed) <= most
    assert figures["visitor"]["people"] >= least - 1
    assert figures["visitor"]["gender"] >= 0.85
    assert figures["visitor"]["age_mae"] <= 8
    assert figures["visitor"]["age_mae"] <= figures["crop"]["age_mae"]


@pytest.mark.slow
def test_the_demo_counts_who_has_walked_by_and_its_metrics_say_the_same(tmp_path: Path) -> None:
    """The demo knows what it has shown, and says so beside what it has counted; /metrics and the API agree while it runs."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "demo", "--seconds", "45", "--json", "--port", str(port)],
        env=clean_environment(XDG_CACHE_HOME=str(tmp_path)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    agreed = []
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                agreed.append(shown_at(f"http://127.0.0.1:{port}"))
            time.sleep(0.5)
    finally:
        process.kill() if process.poll() is None else None
        out, err = process.communicate()
    report = json.loads(out)
    print(f"demo: {report['visitors']} counted, {report['expected_visitors']} have walked by")  # noqa: T201
    assert report["expected_visitors"] >= 12, err
    assert abs(report["visitors"] - report["expected_visitors"]) <= max(1, 0.1 * report["expected_visitors"])
    assert set(report["cameras"]) == {"entrance", "hall"}
    metrics, api = zip(*agreed, strict=True)
    # Two readings a moment apart: somebody may be counted in between.
    assert all(0 <= after - before <= 2 for before, after in zip(metrics, api, strict=True))
    assert report["visitors"] - 6 <= metrics[-1] <= report["visitors"]


def shown_at(url: str) -> tuple[int, int]:
    """Give the visitors of the day by /metrics, and then by the API."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    scraped = sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("demographics_visitors{") and 'window="24h"' in line
    )
    with urllib.request.urlopen(f"{url}/api/v1/windows", timeout=5) as answer:
        day = next(window for window in json.load(answer)["windows"] if window["name"] == "24h")
    return int(scraped), int(day["visitors"])
