"""`demographics report`: what the page shows, in a terminal, read from the store."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.console import Group, RenderableType

from aggregator.disclosure import PublishedCounts
from aggregator.redis_store import open_store
from aggregator.service import disclosure_of, windows_of
from aggregator.views import cameras_view, series_view, windows_view
from pipeline.errors import ConfigError
from pipeline.report import cameras_table, pipeline_table, tally_table, trend_line
from pipeline.settings import Settings, known_names

ALL: Final = "all"


def read_report(settings: Settings, window: str) -> tuple[dict[str, Any], Group]:
    """Read what the page shows, of one rolling window or of *all*: as a document and for the terminal.

    Raises ConfigError and TransportError.
    """
    windows = windows_of(settings)
    names = [kept.name for kept in windows]
    if window not in {*names, ALL}:
        raise ConfigError(f"--window {window}: no such window; {known_names([*names, ALL], window)}")
    drawn = next((kept for kept in windows if kept.name == window), windows[-1])
    store = open_store(settings, windows)
    try:
        now = time.time()
        counts = PublishedCounts(store, disclosure_of(settings))
        snapshot = counts.snapshot(now, windows)
        series = series_view(counts.series(now, drawn), drawn)
        told = store.told(now)
    finally:
        store.close()
    document = windows_view(snapshot, windows, now)
    cameras = cameras_view(snapshot.cameras, now)
    more = {
        "status": cameras,
        "pipeline": told,
        "trend": [{key: b[key] for key in ("start", "visitors", "unknown")} for b in series["buckets"]],
    }
    below: list[RenderableType] = [
        trend_line(series),
        *([cameras_table(cameras, now)] if cameras else []),
        pipeline_table(told),
    ]
    if window == ALL:
        columns = {shown["name"]: shown for shown in document["windows"]} | {"ended, ever": document["total"]}
        return document | more, Group(tally_table("visitors first seen within the last ...", columns), *below)
    (shown,) = (shown for shown in document["windows"] if shown["name"] == window)
    columns = {"all cameras": shown} | shown["cameras"]
    table = tally_table(f"visitors first seen within the last {window}", columns, shares=True)
    return shown | more, Group(table, *below)
