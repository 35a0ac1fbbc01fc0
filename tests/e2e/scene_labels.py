"""How right the labels are on a labelled scene, crop by crop and visitor by visitor.

`python -m tests.e2e.scene_labels FILM...` prints the figures of films that have their truth beside them, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr
from scipy.optimize import linear_sum_assignment

from aggregator.step import Closed
from pipeline.attributes import ETHNICITIES
from pipeline.cameras import Camera
from pipeline.local import LocalRun
from pipeline.settings import load_settings


def matched(times: Sequence[tuple[float, float]], people: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pair tracks, by (first, last) seen, with people: event time follows the film, up to one shift for all."""
    seen = np.array(times)
    truth = np.array([(person["enter_s"], person["leave_s"]) for person in people])
    best: tuple[float, Any, Any] = (np.inf, [], [])
    for shift in np.arange(seen[:, 0].min() - 3, seen[:, 0].min() + 3, 0.1):
        cost = np.abs((seen - shift)[:, None] - truth[None]).sum(2)
        rows, columns = linear_sum_assignment(cost)
        best = min(best, (float(cost[rows, columns].sum()), rows, columns), key=lambda option: option[0])
    return [(int(row), int(column)) for row, column in zip(best[1], best[2], strict=True)]


def visitors_of(film: Path) -> list[Closed]:
    """Run *film* through the whole pipeline in this process; gives everyone who was counted, with their evidence."""
    camera = Camera(id="film", url=SecretStr(str(film.resolve())))
    with LocalRun(load_settings(), [camera], until_end=True, port=0) as local:
        local.start()
        while not local.wait(1):
            pass
        local.finish()
        return sorted(local.report.closed(), key=lambda closed: closed.track.first_seen)


def label_figures(closed: Sequence[Closed], people: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Work out age MAE and the shares of right genders and ethnicities, of single crops and of visitors.

    A visitor of whom nothing is said is left out of both, so that the same people are compared.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {"crop": [], "visitor": []}
    for row, column in matched([(each.track.first_seen, each.track.last_seen) for each in closed], people):
        (track, visitor), person = closed[row], people[column]
        if visitor.age is None or visitor.p_female is None:
            continue
        female, ethnicity = person["gender"] == "female", ETHNICITIES.index(person["ethnicity"])
        said = ETHNICITIES.index(visitor.cell.ethnicity) == ethnicity
        rows["visitor"].append((abs(visitor.age - person["age"]), (visitor.p_female > 0.5) == female, said))
        looks = [each for each in track.evidence if each.age is not None]
        assert looks, "a visitor of whom something is said has shown a face"
        errors = [
            (abs(each.age - person["age"]), (each.p_female > 0.5) == female, np.argmax(each.p_ethnicity) == ethnicity)
            for each in looks
            if each.age is not None and each.p_female is not None and each.p_ethnicity is not None
        ]
        rows["crop"].append(tuple(np.mean(errors, axis=0)))  # every person weighs the same, however long they stayed
    return {
        kind: {
            "people": len(found),
            **dict(zip(("age_mae", "gender", "ethnicity"), np.mean(found, axis=0).round(4).tolist(), strict=True)),
        }
        for kind, found in rows.items()
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        truth = json.loads(Path(name).with_suffix(".json").read_text())
        found = visitors_of(Path(name))
        print(json.dumps({"film": name, "visitors": len(found), **label_figures(found, truth["people"])}))  # noqa: T201
