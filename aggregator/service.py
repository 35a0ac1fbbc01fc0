"""The aggregator, put together: the same in a process of its own and in the all-in-one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aggregator.disclosure import Disclosure
from aggregator.handler import CountingHandler
from aggregator.step import Closed, CountingConfig
from aggregator.store import Store
from aggregator.windows import RollingWindow, rolling_windows
from pipeline.bus import PREDICTIONS, Bus, Record, TopicPartition
from pipeline.messages import TrackEnded, encode, headers
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry
from pipeline.worker import DeadLetters, Worker

GROUP: Final = "aggregator"
MAX_RECORDS: Final = 2000
MAX_WAIT_S: Final = 0.05
FLUSH_S: Final = 30.0


def windows_of(settings: Settings) -> tuple[RollingWindow, ...]:
    """Give the rolling windows of the settings."""
    return rolling_windows(settings.windows_s)


def disclosure_of(settings: Settings) -> Disclosure:
    """Say what of the counts may be published, as the settings have it."""
    return Disclosure(settings.aggregator.smallest_group, frozenset(settings.attributes))


def counting_of(settings: Settings) -> CountingConfig:
    """Say when a visitor is counted, closed and forgotten, as the settings have it."""
    own = settings.aggregator
    return CountingConfig(
        own.enough_crops,
        own.least_evidence,
        own.idle_s,
        own.remember_s,
        max(settings.windows_s.values()),
        frozenset(settings.attributes),
    )


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
        self._producer = bus.producer(max_in_flight=settings.kafka.max_in_flight)
        self._handler = CountingHandler(
            store,
            counting_of(settings),
            telemetry,
            dead_letter=DeadLetters(self._producer, "aggregator", telemetry),
            publish=self._publish,
            settle=self._settle,
            on_closed=on_closed,
        )
        self._consumer = bus.consumer(PREDICTIONS, group=GROUP, member=member, start_at=self._start_at)
        self.worker = Worker(self._consumer, self, telemetry, max_records=MAX_RECORDS, max_wait_s=MAX_WAIT_S)

    def handle(self, records: Sequence[Record]) -> frozenset[TopicPartition]:
        """Apply the records. Raises TransportError."""
        return self._handler.handle(records)

    def idle(self) -> frozenset[TopicPartition]:
        """End what nobody will end any more. Raises TransportError."""
        lags = self._consumer.lag()
        return self._handler.idle(self._consumer.assignment(), lambda partition: lags.get(partition, 1))

    def _start_at(self, partition: TopicPartition) -> int:
        return self._handler.start_at(partition, self._consumer.span(partition))

    def _publish(self, ends: Sequence[TrackEnded]) -> None:
        for ended in ends:
            value = encode(ended)
            self._producer.send(PREDICTIONS, key=ended.camera_id.encode(), value=value, headers=headers(value))
        self._settle()

    def _settle(self) -> None:
        self._producer.flush(FLUSH_S)

    def close(self) -> None:
        """Leave the group and let go."""
        self._consumer.close()
        self._producer.close()
