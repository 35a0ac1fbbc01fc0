"""What every service answers: /healthz, /readyz and /metrics; the aggregator adds its API and page to the same app."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from pipeline.errors import ConfigError
from pipeline.exposition import exposition

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Problems = Callable[[], list[str]]
"""What keeps the service from being ready, in words; none when it is."""


def make_app(title: str, registry: CollectorRegistry, problems: Problems) -> FastAPI:
    """Make the app that every service serves."""
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json")

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.get("/healthz", tags=["operations"])
    def healthz() -> dict[str, str]:
        """Say that the process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"])
    def readyz() -> JSONResponse:
        """Say whether the service can do its work, and if not, why."""
        found = problems()
        return JSONResponse(
            {"status": "waiting" if found else "ok", "problems": found}, status_code=503 if found else 200
        )

    @app.get("/metrics", tags=["operations"])
    def metrics() -> Response:
        """Give the metrics in Prometheus' text format."""
        return Response(exposition(registry), media_type=CONTENT_TYPE_LATEST)

    return app


class HttpServer:
    """Serves an app on a thread of its own."""

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        """Bind; port 0 takes any. Raises ConfigError where the address cannot be had."""
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}); set DEMOGRAPHICS_HTTP__HOST and DEMOGRAPHICS_HTTP__PORT"
            ) from None
        self.host, self.port = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104  compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        """Stop serving; waits for a moment for what is under way."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._socket.close()
