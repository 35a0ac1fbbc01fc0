"""The API answers as /api/v1/openapi.json says, whatever it is asked."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import settings

from aggregator.fusion import Cell
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions
from tests.aggregator.test_api import NOW, WINDOWS, AwayStore, app_of


def _schema() -> Any:
    """Read the description of an app over a store with visitors, and leave out the stream, which never ends."""
    changes, store = Changes(), AwayStore(retentions(WINDOWS))
    changes.counted[(NOW - 5, PlaceCell("museum", "hall", Cell("female", "25-34", "asian")))] += 1
    store.apply(0, changes, start=None, end=Position(1, 1))
    loaded = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app_of(store))
    return loaded.exclude(path="/api/v1/stream")


schema = _schema()


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=25, deadline=None)
def test_the_api_answers_as_it_describes_itself_whatever_it_is_asked(case: Any) -> None:
    """No server error, no undescribed status, body or type; wrong requests are refused."""
    case.call_and_validate()
