"""`demographics aggregate`: predictions on Kafka to counts in Redis, and to whoever wants to see them."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Final

from aggregator.api import mount_api
from aggregator.disclosure import PublishedCounts
from aggregator.exporter import VisitorsCollector
from aggregator.health import HealthTeller, PipelineHealth
from aggregator.redis_store import open_store
from aggregator.service import AggregatorService, disclosure_of, windows_of
from pipeline.distributed import Startup, open_bus
from pipeline.errors import TransportError
from pipeline.retention import RetentionWatch
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

PORT: Final = 8080


def serve(settings: Settings) -> None:
    """Run until a signal. Raises ConfigError."""
    telemetry = Telemetry(("aggregator",))
    windows = windows_of(settings)
    store = open_store(settings, windows)
    with ExitStack() as stack:
        stack.callback(store.close)
        startup = Startup("aggregator", settings, telemetry, port=PORT)
        stack.callback(startup.close)
        counts = PublishedCounts(store, disclosure_of(settings))
        telemetry.collect_with(VisitorsCollector(counts, windows, telemetry))
        health = PipelineHealth(telemetry, startup.problems)
        mount_api(startup.app, counts, windows, health)
        teller = HealthTeller(health, store, f"{socket.gethostname()}:{startup.http.port}")
        stack.callback(teller.close)
        startup.serve()
        startup.wait_for("Redis", store.ping)
        teller.start()
        bus = open_bus(settings.kafka, "demographics-aggregator", telemetry)
        stack.callback(bus.close)

        def join() -> AggregatorService:
            bus.ensure_topics(settings.kafka.topics())
            return AggregatorService(settings, bus, store, telemetry, member=settings.kafka.static_member)

        watch = RetentionWatch(bus.retentions, [topic.name for topic in settings.kafka.topics()], telemetry)
        stack.callback(watch.close)
        service = startup.wait_for("Kafka", join)
        if service is None:
            return
        stack.callback(service.close)

        def problems() -> list[str]:
            try:
                store.ping()
            except TransportError as error:
                return [str(error)]
            return []

        watch.start()
        startup.ready(problems)
        service.worker.run(startup.stop)
