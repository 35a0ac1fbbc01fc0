"""The API answers as /api/v1/openapi.json says, whatever it is asked."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import settings

from aggregator.fusion import Cell
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions
from pipeline.messages import CameraStatus
from tests.aggregator.test_api import NOW, WINDOWS, AwayStore, app_of


def _schema() -> Any:
    """Read the description of an app over a store that holds some of everything; the stream, which never ends, is left out."""
    changes, store = Changes(), AwayStore(retentions(WINDOWS))
    visitor = PlaceCell("museum", "hall", Cell("female", "25-34", "asian"))
    changes.counted[(NOW - 5, visitor)] += 1
    changes.totals[visitor] += 1
    changes.passages.update(
        {("x", "museum", "hall", "in"): 3, ("d", "museum", "hall", "5"): 1, ("t", "museum", "hall", "ms"): 4200}
    )
    changes.cameras["hall"] = CameraStatus(camera_id="hall", site="museum", at=NOW - 1, state="running", present=4)
    store.apply(0, changes, start=None, end=Position(1, 1))
    loaded = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app_of(store))
    return loaded.exclude(path="/api/v1/stream")


schema = _schema()


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=25, deadline=None)
def test_the_api_answers_as_it_describes_itself_whatever_it_is_asked(case: Any) -> None:
    """No server error, no undescribed status, body or type; wrong requests are refused."""
    case.call_and_validate()
