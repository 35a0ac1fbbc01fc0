"""`demographics infer`: face crops to predictions, from Kafka to Kafka."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from inference.service import InferenceService
from inference.tensorflow_predictor import TensorFlowPredictor
from pipeline.distributed import Startup, open_bus
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

PORT: Final = 9102


def serve(settings: Settings) -> None:
    """Run until a signal. Raises ConfigError."""
    telemetry = Telemetry(("inference",))
    with ExitStack() as stack:
        startup = Startup("inference", settings, telemetry, port=PORT)
        stack.callback(startup.close)
        startup.serve()
        predictor = TensorFlowPredictor(settings.inference.model, threads=settings.inference.threads)
        predictor.warm_up()
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
