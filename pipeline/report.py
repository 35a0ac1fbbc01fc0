"""What a run says at its end: who was counted, as one document and as a table for people."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from aggregator.step import Closed
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS


class RunReport:
    """Collects the visitors of one run as their tracks close. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed: list[Closed] = []

    def add(self, closed: Sequence[Closed]) -> None:
        """Take in visitors whose tracks have ended."""
        with self._lock:
            self._closed += closed

    def closed(self) -> list[Closed]:
        """Give all that were taken in so far."""
        with self._lock:
            return list(self._closed)

    def document(self, cameras: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Give the report; *cameras* has what ingest knows of each, by id."""
        closed = sorted(self.closed(), key=lambda item: (item.track.first_seen, item.track.camera_id))
        unknown = [item for item in closed if item.visitor.unknown]
        per_camera = Counter(item.track.camera_id for item in closed)
        unknown_per_camera = Counter(item.track.camera_id for item in unknown)
        cells = [item.visitor.cell for item in closed]
        return {
            "cameras": {
                camera: {"visitors": per_camera[camera], "unknown": unknown_per_camera[camera], **known}
                for camera, known in cameras.items()
            },
            "visitors": len(closed),
            "unknown": len(unknown),
            "gender": {label: sum(cell.gender == label for cell in cells) for label in GENDERS},
            "age_band": {label: sum(cell.age_band == label for cell in cells) for label in AGE_BANDS},
            "ethnicity": {label: sum(cell.ethnicity == label for cell in cells) for label in ETHNICITIES},
            "tracks": [_track(item) for item in closed],
        }


def _track(item: Closed) -> dict[str, Any]:
    track, visitor = item
    return {
        "camera": track.camera_id,
        "track": track.track_id,
        "first_seen": round(track.first_seen, 3),
        "last_seen": round(track.last_seen, 3),
        "crops": len(track.evidence),
        "age": None if visitor.age is None else round(visitor.age, 1),
        "gender": visitor.cell.gender or None,
        "p_female": None if visitor.p_female is None else round(visitor.p_female, 4),
        "ethnicity": visitor.cell.ethnicity or None,
        "unknown": visitor.unknown,
    }


def tally_table(title: str, columns: dict[str, dict[str, Any]]) -> Table:
    """Draw tallies (see aggregator.views.tally_view) side by side, one column each."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")

    def row(label: str, values: list[int], *, style: str = "") -> None:
        table.add_row(label, *(str(value) if value else "·" for value in values), style=style)

    row("visitors", [tally["visitors"] for tally in columns.values()], style="bold")
    row("unknown", [tally["unknown"] for tally in columns.values()])
    for attribute in ("gender", "age_band", "ethnicity"):
        table.add_section()
        labels: dict[str, None] = {label: None for tally in columns.values() for label in tally[attribute]}
        for label in labels:
            row(label, [tally[attribute].get(label, 0) for tally in columns.values()])
    return table
