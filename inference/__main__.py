"""`demographics infer`: face crops to predictions, from Kafka to Kafka."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from inference.predictor import Engine
from inference.service import InferenceService, engine_of
from pipeline.distributed import Startup, open_bus
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

PORT: Final = 9102


def serve(settings: Settings, load: Callable[[Settings], Engine] | None = None) -> None:
    """Run until a signal, with the engine that *load* gives, else the settings'. Raises ConfigError."""
    telemetry = Telemetry(("inference",))
    with ExitStack() as stack:
        startup = Startup("inference", settings, telemetry, port=PORT)
        stack.callback(startup.close)
        startup.serve()
        predictor = load(settings) if load else engine_of(settings.inference, telemetry)
        bus = open_bus(settings.kafka, "demographics-inference", telemetry)
        stack.callback(bus.close)

        def join() -> InferenceService:
            bus.ensure_topics(settings.kafka.topics())
            return InferenceService(
                settings, bus, predictor, predictor.manifest, telemetry, member=settings.kafka.static_member
            )

        service = startup.wait_for("Kafka", join)
        if service is None:
            return
        stack.callback(service.close)
        startup.ready()
        service.worker.run(startup.stop)
