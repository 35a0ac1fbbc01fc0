"""What a run says at its end: who was counted, as one document and as a table for people."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

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


def tally_table(title: str, columns: dict[str, dict[str, Any]], *, shares: bool = False) -> Table:
    """Draw tallies (see aggregator.views.tally_view) side by side, one column each; *shares* adds those of the first."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("")
    names = list(columns)
    for name in names:
        table.add_column(name, justify="right")
        if shares and name == names[0]:
            table.add_column("share", justify="right")

    def row(label: str, values: list[int], of: int, *, style: str = "") -> None:
        cells = [str(value) if value else "·" for value in values]
        if shares:
            cells.insert(1, f"{values[0] / of:.0%}" if of and values[0] else "")
        table.add_row(label, *cells, style=style)

    tallies = list(columns.values())
    row("visitors", [tally["visitors"] for tally in tallies], 0, style="bold")
    row("unknown", [tally["unknown"] for tally in tallies], tallies[0]["visitors"])
    if any(tally.get("suppressed") for tally in tallies):
        row("suppressed", [tally["suppressed"] for tally in tallies], tallies[0]["visitors"])
    for attribute in ("gender", "age_band", "ethnicity"):
        table.add_section()
        labels: dict[str, None] = {label: None for tally in tallies for label in tally[attribute]}
        known = sum(tallies[0][attribute].values())
        for label in labels:
            row(label, [tally[attribute].get(label, 0) for tally in tallies], known)
    return table


def pipeline_table(told: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Draw how the pipeline does, as each aggregator (see aggregator.health.PipelineHealth.view) has told lately."""
    if not told:
        return Text("\npipeline: no aggregator has said how it does for 30 s; is one running?", style="red")
    table = Table(title="\npipeline", title_justify="left", pad_edge=False)
    table.add_column("aggregator")
    table.add_column("state")
    for name in ("half counted within", "95 in 100 within", "records/s", "waiting", "in view", "dead letters"):
        table.add_column(name, justify="right")
    table.add_column("problems")
    for who, said in told.items():
        latency = said["latency_s"] or {}
        table.add_row(
            who,
            _PIPELINE_WORDS.get(said["state"], said["state"]),
            *(f"{latency[share]:.1f} s" if share in latency else "-" for share in ("half", "most")),
            f"{said['records_per_s']:.1f}",
            str(sum(said["waiting"].values())),
            str(said["open_tracks"]),
            str(said["dead_letters"]),
            Text("; ".join(said["problems"])),
            style={"trouble": "red", "late": "yellow"}.get(said["state"], ""),
        )
    return table


# The page's own words.
_PIPELINE_WORDS: Final = {"good": "counting", "quiet": "quiet", "late": "behind the cameras", "trouble": "in trouble"}
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


def trend_line(series: dict[str, Any]) -> Text:
    """Draw a series (see aggregator.views.series_view) as a line of bars, oldest first, with its busiest time in words."""
    buckets = series["buckets"]
    counts = [bucket["visitors"] for bucket in buckets]
    most = max(counts, default=0)
    # Whoever came is seen: one visitor is never drawn as none.
    bars = "".join(_BLOCKS[math.ceil(8 * count / most) if most else 0] for count in counts)
    said = "nobody yet"
    if most:
        busiest = datetime.fromtimestamp(buckets[counts.index(most)]["start"], UTC).astimezone()
        said = f"busiest from {busiest:%H:%M}: {most} in {series['bucket_s']} s"
    return Text.assemble(
        (f"\nlast {series['window']}, {series['bucket_s']} s each: ", "dim"), f"▏{bars}▕ ", (said, "dim")
    )


def cameras_table(cameras: Sequence[dict[str, Any]], now: float) -> Table:
    """Draw the cameras (see aggregator.views.cameras_view), with their state and the reason for it."""
    table = Table(title="\ncameras", title_justify="left", pad_edge=False)
    for name in ("camera", "site", "state"):
        table.add_column(name)
    for name in ("frames/s", "frames", "reconnects", "heard"):
        table.add_column(name, justify="right")
    table.add_column("reason")
    for camera in cameras:
        table.add_row(
            camera["id"],
            camera["site"],
            camera["state"],
            f"{camera['fps']:.1f}",
            str(camera["frames"]),
            str(camera["reconnects"]),
            f"{max(0.0, now - camera['reported_at']):.0f} s ago",
            Text(camera["advice"] if camera["state"] == "running" else camera["reason"]),
            style="" if camera["state"] in {"running", "ended", "paused"} else "red",
        )
    return table
