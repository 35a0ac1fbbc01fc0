"""What every service answers: /healthz, /readyz and /metrics; the aggregator adds its API and page to the same app.

Whatever is refused or fails is a problem as RFC 9457 describes them. With a token, everything that holds figures asks for it;
/healthz and /readyz, which whoever restarts services asks, hold none.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, Final

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from pydantic import BaseModel, Field, SecretStr
from starlette.exceptions import HTTPException as AnyHTTPException

from pipeline.errors import ConfigError, TransportError
from pipeline.exposition import exposition

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Frame-Options": "DENY",
}
"""On every answer, refusals and faults included. There is no CORS header on any: no other origin's script reads an answer."""

MOST_CONNECTIONS: Final = 512
MOST_CLIENTS: Final = 4096  # whose requests are counted at the same time
UNLIMITED: Final = frozenset({"/healthz", "/readyz"})  # whoever restarts services asks these


class RateLimit:
    """Lets each client ask so often: a bucket of requests that fills up again (J. Turner, IEEE Communications 24(10), 1986).

    One thread owns it: that of the event loop.
    """

    def __init__(self, per_s: float, *, burst_s: float = 4.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow *per_s* requests a second on average, and those of *burst_s* at once."""
        self._per_s = per_s
        self._most = max(1.0, per_s * burst_s)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by client: requests left, as of when

    def admit(self, client: str) -> float:
        """Count a request; gives 0 where it may be answered, else after how many seconds the next one may."""
        now = self._clock()
        left, at = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_s)
        allowed = left >= 1.0
        self._left[client] = (left - 1.0 if allowed else left, now)
        if len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._per_s


Problems = Callable[[], list[str]]
"""What keeps the service from being ready, in words; none when it is."""


class Problem(BaseModel):
    """Why a request was not answered, as RFC 9457 has it."""

    type: str = Field("about:blank", description="kind of problem")
    title: str = Field(description="the same for every problem of this status")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong here, and what to do")


class Alive(BaseModel):
    """That a process answers."""

    status: str


class Ready(Alive):
    """Whether a service does its work."""

    problems: list[str]


def problem(status: int, detail: str, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """Answer with a problem."""
    said = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(
        said.model_dump(), status_code=status, media_type="application/problem+json", headers=headers or {}
    )


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems that a path may answer with, for OpenAPI."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": schema},
            "model": Problem,
        }
        for status in statuses
    }


def _guard(token: SecretStr | None) -> list[Any]:
    """Give the dependencies of a path that holds figures: none without a token."""
    wanted = token.get_secret_value().encode() if token else b""
    if not wanted:
        return []

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        said = given.credentials.encode() if given else b""
        if not secrets.compare_digest(said, wanted):
            raise HTTPException(
                401,
                "send the header 'Authorization: Bearer TOKEN' with the value of DEMOGRAPHICS_HTTP__TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return [Depends(check)]


def make_app(
    title: str,
    registry: CollectorRegistry,
    problems: Problems,
    *,
    token: SecretStr | None = None,
    requests_per_s: float = 0,
) -> FastAPI:
    """Make the app that every service serves.

    `app.state.guarded` has the dependencies of whatever else holds figures, `app.state.refusals` what it may be refused with.
    A client that asks more often than *requests_per_s* on average is told to wait; 0 lets everybody ask.
    """
    limit = RateLimit(requests_per_s) if requests_per_s else None
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json")
    guarded = app.state.guarded = _guard(token)
    refusals = app.state.refusals = (*((401,) if guarded else ()), *((429,) if limit else ()))

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        client = request.client.host if request.client else ""
        wait_s = limit.admit(client) if limit and request.url.path not in UNLIMITED else 0.0
        if wait_s:
            again = {"Retry-After": str(math.ceil(wait_s))}
            response: Response = problem(429, f"ask again in {math.ceil(wait_s)} s, and less often", headers=again)
        else:
            response = await call_next(request)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(AnyHTTPException)
    async def refused(_request: Request, error: AnyHTTPException) -> JSONResponse:
        allowed = {"Allow": "GET"} if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else {}
        said = (
            error.detail
            if error.detail != HTTPStatus(error.status_code).phrase
            else _DETAILS.get(error.status_code, "")
        )
        return problem(error.status_code, said or error.detail, headers={**allowed, **(error.headers or {})})

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, "; ".join(f"{found['loc'][-1]}: {found['msg']}" for found in error.errors()))

    @app.exception_handler(TransportError)
    async def unavailable(_request: Request, error: TransportError) -> JSONResponse:
        return problem(503, str(error))

    @app.exception_handler(Exception)
    async def failed(_request: Request, _error: Exception) -> JSONResponse:
        # Faults are answered outside of all middleware.
        return problem(500, "this is a fault of the service; its log says more", headers=SECURITY_HEADERS)

    @app.get("/healthz", tags=["operations"])
    def healthz() -> Alive:
        """Say that the process is alive."""
        return Alive(status="ok")

    @app.get("/readyz", tags=["operations"], responses={503: {"model": Ready, "description": "Not ready, and why"}})
    def readyz(response: Response) -> Ready:
        """Say whether the service can do its work, and if not, why."""
        found = problems()
        response.status_code = 503 if found else 200
        return Ready(status="waiting" if found else "ok", problems=found)

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}

    @app.get(
        "/metrics",
        tags=["operations"],
        dependencies=guarded,
        response_class=Response,
        responses={200: text, **described(*refusals)},
    )
    def metrics() -> Response:
        """Give the metrics in Prometheus' text format."""
        return Response(exposition(registry), media_type=CONTENT_TYPE_LATEST)

    return app


_DETAILS: Final = {
    404: "there is no such path; /api/v1/openapi.json lists those that there are",
    405: "this API is read-only; ask with GET",
}


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
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
            limit_concurrency=MOST_CONNECTIONS,
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
