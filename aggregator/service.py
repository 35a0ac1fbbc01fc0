"""The aggregator, put together: the same in a process of its own and in the all-in-one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aggregator.handler import CountingHandler
from aggregator.step import Closed, CountingConfig
from aggregator.store import Store
from aggregator.windows import RollingWindow, rolling_windows
from pipeline.bus import PREDICTIONS, Bus, Record
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry
from pipeline.worker import DeadLetters, Worker

GROUP: Final = "aggregator"
MAX_RECORDS: Final = 2000
MAX_WAIT_S: Final = 0.05


def windows_of(settings: Settings) -> tuple[RollingWindow, ...]:
    """Give the rolling windows of the settings."""
    return rolling_windows(settings.windows_s)


class AggregatorService:
    """A worker on the topic of predictions."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        store: Store,
        telemetry: Telemetry,
        *,
        member: str | None = None,
        on_closed: Callable[[Sequence[Closed]], None] | None = None,
    ) -> None:
        """Join the group. Raises TransportError."""
        own = settings.aggregator
        self._producer = bus.producer(max_in_flight=settings.kafka.max_in_flight)
        self._handler = CountingHandler(
            store,
            CountingConfig(
                own.enough_crops, own.least_evidence, own.idle_s, own.remember_s, max(settings.windows_s.values())
            ),
            telemetry,
            dead_letter=DeadLetters(self._producer, "aggregator", telemetry),
            on_closed=on_closed,
        )
        self._consumer = bus.consumer(PREDICTIONS, group=GROUP, member=member, start_at=self._handler.start_at)
        self.worker = Worker(self._consumer, self, telemetry, max_records=MAX_RECORDS, max_wait_s=MAX_WAIT_S)

    def handle(self, records: Sequence[Record]) -> None:
        """Apply the records, and make dead letters durable with them. Raises TransportError."""
        self._handler.handle(records)
        self._producer.flush(30.0)

    def idle(self) -> None:
        """Close what nobody will end any more. Raises TransportError."""
        lags = self._consumer.lag()
        self._handler.idle(self._consumer.assignment(), lambda partition: lags.get(partition, 1))

    def close(self) -> None:
        """Leave the group and let go."""
        self._consumer.close()
        self._producer.close()
