"""`demographics report`: the counters as they are now, read from the store."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.table import Table

from aggregator.redis_store import RedisStore
from aggregator.service import windows_of
from aggregator.views import windows_view
from aggregator.windows import retentions
from pipeline.errors import ConfigError
from pipeline.report import tally_table
from pipeline.settings import Settings, known_names

ALL: Final = "all"


def read_report(settings: Settings, window: str) -> tuple[dict[str, Any], Table]:
    """Read one rolling window, or *all* of them; as a document and as a table. Raises ConfigError and TransportError."""
    windows = windows_of(settings)
    names = [kept.name for kept in windows]
    if window not in {*names, ALL}:
        raise ConfigError(f"--window {window}: no such window; {known_names([*names, ALL], window)}")
    store = RedisStore(settings.redis.url.get_secret_value(), retentions(windows), namespace=settings.redis.namespace)
    try:
        now = time.time()
        document = windows_view(store.snapshot(now, windows), windows, now)
    finally:
        store.close()
    if window == ALL:
        columns = {shown["name"]: shown for shown in document["windows"]} | {"ended, ever": document["total"]}
        return document, tally_table("visitors first seen within the last ...", columns)
    (shown,) = (shown for shown in document["windows"] if shown["name"] == window)
    columns = {"all cameras": shown} | shown["cameras"]
    return shown, tally_table(f"visitors first seen within the last {window}", columns)
