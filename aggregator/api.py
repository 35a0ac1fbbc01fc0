"""The HTTP API and the live page: read-only, one version, described by OpenAPI at /api/v1/openapi.json."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from aggregator.store import Store
from aggregator.views import cameras_view, series_view, windows_view
from aggregator.windows import RollingWindow
from pipeline.errors import TransportError

PAGE: Final = Path(__file__).parent / "page"
PUSH_INTERVAL_S: Final = 1.0


def problem(status: int, title: str, detail: str) -> JSONResponse:
    """Answer with a problem as RFC 9457 describes them."""
    return JSONResponse(
        {"type": "about:blank", "title": title, "status": status, "detail": detail},
        status_code=status,
        media_type="application/problem+json",
    )


def mount_api(
    app: FastAPI, store: Store, windows: Iterable[RollingWindow], *, clock: Callable[[], float] = time.time
) -> None:
    """Add the API under /api/v1 and the page at / to *app*."""
    kept = {window.name: window for window in windows}
    router = APIRouter(prefix="/api/v1", tags=["visitors"])

    def state() -> dict[str, Any]:
        now = clock()
        snapshot = store.snapshot(now, kept.values())
        return {**windows_view(snapshot, kept.values(), now), "status": cameras_view(snapshot.cameras, now)}

    @app.exception_handler(TransportError)
    async def unavailable(_request: Request, error: TransportError) -> JSONResponse:
        return problem(503, "The counts cannot be read", str(error))

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, "Not so", str(error.detail))

    @router.get("/windows")
    def get_windows() -> dict[str, Any]:
        """Visitors in every rolling window and in all, by gender, age band, ethnicity and camera."""
        now = clock()
        return windows_view(store.snapshot(now, kept.values()), kept.values(), now)

    @router.get("/cameras")
    def get_cameras() -> list[dict[str, Any]]:
        """Every camera with its state and the reason for it."""
        now = clock()
        return cameras_view(store.snapshot(now, ()).cameras, now)

    @router.get("/visitors")
    def get_visitors(window: str = Query("1h", description="name of a rolling window")) -> dict[str, Any]:
        """One rolling window, bucket by bucket, oldest first."""
        if window not in kept:
            raise HTTPException(404, f"there is no window '{window}'; there are {', '.join(kept)}")
        return series_view(store.series(clock(), kept[window]), kept[window])

    @router.get("/stream")
    def get_stream() -> StreamingResponse:
        """Server-sent events: the windows and the cameras, once a second; `event: trouble` where they cannot be read."""
        return StreamingResponse(_events(state), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    app.include_router(router)
    app.mount("/", _Page(directory=PAGE, html=True), name="page")


class _Page(StaticFiles):
    """The page's files, asked for anew each time: after an upgrade no old script meets a new page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Give a file that may be kept but must be asked about."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _events(state: Callable[[], dict[str, Any]]) -> AsyncIterator[str]:
    while True:
        try:
            document = await run_in_threadpool(state)
            yield f"data: {json.dumps(document)}\n\n"
        except TransportError as error:
            yield f"event: trouble\ndata: {json.dumps(str(error))}\n\n"
        await asyncio.sleep(PUSH_INTERVAL_S)
