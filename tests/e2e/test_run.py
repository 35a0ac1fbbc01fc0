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

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from demo.composer import compose, load_cast
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from tests.e2e.conftest import ROOT, clean_environment
from tests.servers import free_port

Command = Callable[..., Any]
Scene = Callable[[str], tuple[Path, dict[str, Any]]]


def matched(tracks: list[dict[str, Any]], people: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair tracks with people by when they were seen: event time follows the film, up to one shift for all."""
    times = np.array([(track["first_seen"], track["last_seen"]) for track in tracks])
    truth = np.array([(person["enter_s"], person["leave_s"]) for person in people])
    best: tuple[float, Any, Any] = (np.inf, [], [])
    for shift in np.arange(times[:, 0].min() - 3, times[:, 0].min() + 3, 0.1):
        cost = np.abs((times - shift)[:, None] - truth[None]).sum(2)
        rows, columns = linear_sum_assignment(cost)
        best = min(best, (float(cost[rows, columns].sum()), rows, columns), key=lambda option: option[0])
    return [(tracks[row], people[column]) for row, column in zip(best[1], best[2], strict=True)]


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
    for track, person in matched(report["tracks"], [vars(passage) for passage in clip.passages]):
        seen_s = track["last_seen"] - track["first_seen"]
        assert 0.4 < seen_s < person["leave_s"] - person["enter_s"] + 1.5
        assert track["crops"] >= 1


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "least", "most"), [("lobby", 11, 13), ("rush", 27, 33)])
def test_a_labelled_scene_is_counted_and_described(
    command: Command, scene: Scene, name: str, least: int, most: int
) -> None:
    """Visitors, gender and age of real faces, against the truth."""
    film, truth = scene(name)
    report = command("run", "--source", film, "--until-end", "--json").json()
    pairs = matched(report["tracks"], truth["people"])
    gender = float(np.mean([track["gender"] == person["gender"] for track, person in pairs]))
    age_mae = float(np.mean([abs(track["age"] - person["age"]) for track, person in pairs if track["age"] is not None]))
    print(f"{name}: {report['visitors']} of {len(truth['people'])}, gender {gender:.1%}, age MAE {age_mae:.1f}")  # noqa: T201
    assert least <= report["visitors"] <= most
    assert gender >= 0.85
    assert age_mae <= 8


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
