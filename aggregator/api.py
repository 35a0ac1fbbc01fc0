"""The HTTP API and the live page: read-only, one version, described by OpenAPI at /api/v1/openapi.json."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Header, HTTPException, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from aggregator.disclosure import Counts
from aggregator.documents import Camera, Pipeline, Series, Windows
from aggregator.health import PipelineHealth
from aggregator.store import Place, Tally
from aggregator.views import cameras_view, series_view, windows_view
from aggregator.windows import RollingWindow
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from pipeline.errors import TransportError
from pipeline.http import described

PAGE: Final = Path(__file__).parent / "page"
PUSH_INTERVAL_S: Final = 1.0
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


def mount_api(
    app: FastAPI,
    store: Counts,
    windows: Iterable[RollingWindow],
    health: PipelineHealth,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Add the API under /api/v1 and the page at / to *app*, which `make_app` has made."""
    kept = {window.name: window for window in windows}
    guarded = app.state.guarded
    refusals = (*app.state.refusals, 503)
    router = APIRouter(prefix="/api/v1", tags=["visitors"], dependencies=guarded, responses=described(*refusals))

    def state() -> dict[str, Any]:
        now = clock()
        snapshot = store.snapshot(now, kept.values())
        return {
            **windows_view(snapshot, kept.values(), now, brief=True),
            "status": cameras_view(snapshot.cameras, now),
            "pipeline": health.view(),
        }

    shared = SharedEvent(state)

    @router.get("/windows", response_model=Windows)
    def get_windows() -> Response:
        """Visitors in every rolling window and in all, by gender, age band, ethnicity and camera."""
        now = clock()
        return JSONResponse(windows_view(store.snapshot(now, kept.values()), kept.values(), now))

    @router.get("/cameras", response_model=list[Camera])
    def get_cameras() -> Response:
        """Every camera with its state and the reason for it."""
        now = clock()
        return JSONResponse(cameras_view(store.snapshot(now, ()).cameras, now))

    @router.get("/pipeline", response_model=Pipeline)
    def get_pipeline() -> Response:
        """How the pipeline does, as this aggregator sees it."""
        return JSONResponse(health.view())

    @router.get(
        "/visitors",
        response_model=Series,
        responses={
            200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The series"},
            **described(404, 422),
        },
    )
    def get_visitors(
        window: str = Query(
            "1h" if "1h" in kept else next(iter(kept)),
            description="name of a rolling window",
            json_schema_extra={"enum": [*kept]},
        ),
        camera: str | None = Query(None, description="only this camera", pattern=_NAME),
        site: str | None = Query(None, description="only this site", pattern=_NAME),
        format: str | None = Query(  # noqa: A002  the parameter's name
            None, description="json or csv; else as the header Accept says", pattern="^(json|csv)$"
        ),
        accept: str = Header("", include_in_schema=False),
    ) -> Response:
        """One rolling window, bucket by bucket, oldest first, as JSON or CSV."""
        if window not in kept:
            raise HTTPException(404, f"there is no window '{window}'; there are {', '.join(kept)}")
        now = clock()
        if camera or site:
            _refuse_unknown(store, now, camera, site)
        series = [
            (start, {place: tally for place, tally in tallies.items() if _is_wanted(place, camera, site)})
            for start, tallies in store.series(now, kept[window])
        ]
        preferred = accept.partition(",")[0].partition(";")[0].strip()
        if format == "csv" or (format is None and preferred == "text/csv"):
            return _csv(series, kept[window])
        return JSONResponse(series_view(series, kept[window]))

    @router.get(
        "/stream",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "An event a second"}
        },
    )
    def get_stream() -> StreamingResponse:
        """Server-sent events: windows, cameras and pipeline, once a second; `event: trouble` where they cannot be read."""
        return StreamingResponse(
            _events(shared.read),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    app.include_router(router)
    app.mount("/", _Page(directory=PAGE, html=True), name="page")


def _is_wanted(place: Place, camera: str | None, site: str | None) -> bool:
    return (camera is None or place.camera_id == camera) and (site is None or place.site == site)


def _refuse_unknown(store: Counts, now: float, camera: str | None, site: str | None) -> None:
    snapshot = store.snapshot(now, ())
    places = {*snapshot.totals, *(Place(status.site, name) for name, status in snapshot.cameras.items())}
    if not any(_is_wanted(place, camera, site) for place in places):
        wanted = " ".join(f"{what} '{name}'" for what, name in (("camera", camera), ("site", site)) if name)
        known = ", ".join(sorted({f"{place.site}/{place.camera_id}" for place in places})) or "none"
        raise HTTPException(404, f"nobody has heard of {wanted}; known are {known[:300]}")


def _csv(series: list[tuple[int, dict[Place, Tally]]], window: RollingWindow) -> Response:
    """Write a series for spreadsheets: a line for each bucket."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\r\n").writerow  # RFC 4180
    groups = {"gender": GENDERS, "age_band": AGE_BANDS, "ethnicity": ETHNICITIES}
    named = [f"{group}_{label}" for group, labels in groups.items() for label in labels]
    write(["start", "seconds", "visitors", "unknown", "suppressed", *named])
    for bucket in series_view(series, window)["buckets"]:
        start = datetime.fromtimestamp(bucket["start"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        counts = [bucket[group][label] for group, labels in groups.items() for label in labels]
        write([start, window.bucket_s, bucket["visitors"], bucket["unknown"], bucket["suppressed"], *counts])
    headers = {"Content-Disposition": f'attachment; filename="visitors-{window.name}.csv"'}
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


class _Page(StaticFiles):
    """The page's files, asked for anew each time: after an upgrade no old script meets a new page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Give a file that may be kept but must be asked about."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class SharedEvent:
    """The newest event, made once for all who listen: ten wall screens read the counts no oftener than one."""

    def __init__(
        self,
        state: Callable[[], dict[str, Any]],
        *,
        keep_s: float = 0.9 * PUSH_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._made_at = float("-inf")
        self._event = ""

    def read(self) -> str:
        """Give the event as it goes out, made anew where the last is too old."""
        with self._lock:
            if self._clock() - self._made_at >= self._keep_s:
                try:
                    self._event = f"data: {json.dumps(self._state())}\n\n"
                except TransportError as error:
                    self._event = f"event: trouble\ndata: {json.dumps(str(error))}\n\n"
                self._made_at = self._clock()
            return self._event


async def _events(read: Callable[[], str]) -> AsyncIterator[str]:
    while True:
        yield await run_in_threadpool(read)
        await asyncio.sleep(PUSH_INTERVAL_S)
