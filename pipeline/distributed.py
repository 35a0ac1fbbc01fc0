"""What the three services share when they run apart: the bus from the settings, and patience at start."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from pipeline import telemetry as metrics
from pipeline.bus import TopicPartition
from pipeline.errors import TransportError
from pipeline.http import HttpServer, make_app
from pipeline.kafka_bus import KafkaBus
from pipeline.settings import KafkaSettings, Settings
from pipeline.signals import stop_on_signals
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

T = TypeVar("T")

LONGEST_PAUSE_S: Final = 10.0


def open_bus(settings: KafkaSettings, client_id: str, telemetry: Telemetry | None = None) -> KafkaBus:
    """Make the bus of the settings; nothing is asked of the brokers yet. Raises ConfigError.

    A command that only asks has no *telemetry* to count stalls in.
    """

    def stalled(where: TopicPartition) -> None:
        if telemetry is not None:
            telemetry.add(metrics.STALLS, topic=where.topic, partition=str(where.partition))

    security: dict[str, object] = {"security_protocol": settings.security_protocol}
    if settings.ca_file:
        security["ssl_cafile"] = str(settings.ca_file)
    if settings.security_protocol.startswith("SASL"):
        security |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return KafkaBus(
        settings.bootstrap_servers,
        security=security,
        client_id=client_id,
        session_timeout_s=settings.session_timeout_s,
        heartbeat_interval_s=min(3.0, settings.session_timeout_s / 3),
        on_stall=stalled,
    )


def keep_for_good() -> None:
    """Take what there is now, modules and models, out of the garbage collector's rounds: it stays for as long as the process."""
    gc.collect()
    gc.freeze()


class Startup:
    """A service that is not there yet: what it waits for is in the log, in the metrics and at /readyz."""

    def __init__(self, service: str, settings: Settings, telemetry: Telemetry, *, port: int) -> None:
        """Answer on HTTP from the first moment. Raises ConfigError where the port cannot be had."""
        self.stop = stop_on_signals(drain_s=settings.drain_s)
        self._service = service
        self._telemetry = telemetry
        self._waiting: str | None = "starting"
        self._problems: Callable[[], list[str]] = list
        self.app = make_app(
            f"demographics {service}",
            telemetry.registry,
            self.problems,
            token=settings.http.token,
            requests_per_s=settings.http.requests_per_s,
        )
        wanted = settings.http.port
        self.http = HttpServer(self.app, host=settings.http.host, port=port if wanted is None else wanted)

    def serve(self) -> None:
        """Begin to answer, once the app has all its routes."""
        self.http.start()
        log.info("service_starting", service=self._service, address=self.http.url)

    def problems(self) -> list[str]:
        """Say what keeps the service from being ready."""
        return [self._waiting] if self._waiting else self._problems()

    def wait_for(self, what: str, attempt: Callable[[], T]) -> T | None:
        """Try until it works, longer pauses each time; None when stopped before that."""
        pause_s = 0.5
        while not self.stop.is_set():
            try:
                done = attempt()
            except TransportError as error:
                self._waiting = str(error)
                self._telemetry.add(metrics.BUS_FAILURES)
                log.warning("waiting", service=self._service, waiting_for=what, detail=str(error), retry_in_s=pause_s)
                self.stop.wait(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            else:
                return done
        return None

    def ready(self, problems: Callable[[], list[str]] = list) -> None:
        """Say that the service does its work; *problems* says from now on whether it still can."""
        self._waiting = None
        self._problems = problems
        keep_for_good()
        log.info("service_ready", service=self._service)

    def close(self) -> None:
        """Stop answering."""
        self.http.close()
        log.info("service_stopped", service=self._service)
