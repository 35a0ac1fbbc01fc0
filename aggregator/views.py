"""What is shown: a snapshot of the counts as documents for the API, the page, the terminal and the final report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aggregator.store import Place, Snapshot, Tally
from aggregator.windows import RollingWindow
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS, SUPPRESSED, UNKNOWN
from pipeline.messages import CameraStatus

SILENT: Final = "silent"  # a camera's state where nobody speaks of it any more


def merged(tallies: Iterable[Tally]) -> Tally:
    """Add tallies up."""
    total = Tally(Counter(), Counter())
    for tally in tallies:
        total.people.update(tally.people)
        total.ethnicity.update(tally.ethnicity)
    return total


def tally_view(tally: Tally) -> dict[str, Any]:
    """Show one tally: every label is there, zero or not; unknown and suppressed visitors are counted apart."""
    people = tally.people
    return {
        "visitors": people.total(),
        "unknown": people[(UNKNOWN, UNKNOWN)],
        "suppressed": people[(SUPPRESSED, SUPPRESSED)],
        "gender": {g: sum(n for (gender, _), n in people.items() if gender == g) for g in GENDERS},
        "age_band": {b: sum(n for (_, band), n in people.items() if band == b) for b in AGE_BANDS},
        "ethnicity": {e: tally.ethnicity[e] for e in ETHNICITIES},
        "pyramid": {b: {g: people[(g, b)] for g in GENDERS} for b in AGE_BANDS},
    }


def _by_camera(tallies: Mapping[Place, Tally], *, brief: bool) -> dict[str, Any]:
    def view(tally: Tally) -> dict[str, Any]:
        return {"visitors": tally.people.total()} if brief else tally_view(tally)

    return {
        place.camera_id: {"site": place.site, **view(tally)}
        for place, tally in sorted(tallies.items(), key=lambda item: item[0])
    }


def windows_view(
    snapshot: Snapshot, windows: Iterable[RollingWindow], now: float, *, brief: bool = False
) -> dict[str, Any]:
    """Show every rolling window, over all cameras and by camera, and the totals of ended passages.

    *brief* says only the visitors of each camera: what is sent once a second should be small with 200 cameras, too.
    """
    return {
        "now": now,
        "windows": [
            {
                "name": window.name,
                "seconds": window.seconds,
                **tally_view(merged(snapshot.windows[window.name].values())),
                "cameras": _by_camera(snapshot.windows[window.name], brief=brief),
            }
            for window in windows
        ],
        "passages": {
            place.camera_id: {
                "site": place.site,
                "entries": said.entries,
                "exits": said.exits,
                "dwell_s": round(said.dwell_s / said.dwell.total(), 2) if said.dwell else None,  # on average
            }
            for place, said in sorted(snapshot.passages.items())
        },
        "total": {**tally_view(merged(snapshot.totals.values())), "cameras": _by_camera(snapshot.totals, brief=brief)},
    }


def cameras_view(statuses: Mapping[str, CameraStatus], now: float, stale_s: float = 15.0) -> list[dict[str, Any]]:
    """Show every camera; one whose worker has said nothing for *stale_s* is `silent`, unless it has ended."""
    return [
        {
            "id": status.camera_id,
            "site": status.site,
            "state": SILENT if now - status.at > stale_s and status.state != "ended" else status.state,
            "reason": status.reason,
            "address": status.address,
            "fps": status.fps if now - status.at <= stale_s else 0.0,
            "frames": status.frames,
            "reconnects": status.reconnects,
            "present": status.present if now - status.at <= stale_s else 0,
            "advice": status.advice if now - status.at <= stale_s else "",
            "reported_at": status.at,
        }
        for _, status in sorted(statuses.items())
    ]


def series_view(series: Iterable[tuple[int, Mapping[Place, Tally]]], window: RollingWindow) -> dict[str, Any]:
    """Show one window bucket by bucket."""
    return {
        "window": window.name,
        "bucket_s": window.bucket_s,
        "buckets": [
            {
                "start": start,
                **tally_view(merged(tallies.values())),
                "cameras": {p.camera_id: t.people.total() for p, t in tallies.items()},
            }
            for start, tallies in series
        ],
    }
