"""Every implementation of a port, for the suites that hold all of them to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest

from pipeline.bus import Bus
from pipeline.kafka_bus import KafkaBus
from pipeline.memory_bus import MemoryBus
from tests.servers import KafkaServer

SESSION_S = 1.5  # a member that is silent for longer is out


class BusMaker(Protocol):
    """Opens one implementation of the bus."""

    def bus(self) -> Bus:
        """Open a bus whose members are out after SESSION_S."""

    @contextmanager
    def taking_nothing(self) -> Iterator[None]:
        """For as long as this lasts, nothing that is sent is acknowledged, or the log is full."""


class MemoryBusMaker:
    """The bus in this process. There is one; what is to be shared is in it."""

    def __init__(self) -> None:
        self._bus = MemoryBus(session_timeout_s=SESSION_S, max_topic_bytes=1 << 20)

    def bus(self) -> Bus:
        """Give the one bus."""
        return self._bus

    @contextmanager
    def taking_nothing(self) -> Iterator[None]:
        """Do nothing."""
        yield  # its log is small enough to be filled


class KafkaBusMaker:
    """Kafka, on a real broker."""

    def __init__(self, server: KafkaServer) -> None:
        self._server = server
        self._opened: list[KafkaBus] = []

    def bus(self) -> Bus:
        """Connect once more."""
        self._opened.append(
            KafkaBus(
                self._server.bootstrap_servers,
                session_timeout_s=SESSION_S,
                heartbeat_interval_s=0.2,
                max_poll_interval_s=SESSION_S,
            )
        )
        return self._opened[-1]

    @contextmanager
    def taking_nothing(self) -> Iterator[None]:
        """Freeze the broker."""
        self._server.pause()
        try:
            yield
        finally:
            self._server.resume()

    def close(self) -> None:
        """Close every connection."""
        for bus in self._opened:
            bus.close()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus_maker(request: pytest.FixtureRequest) -> Iterator[BusMaker]:
    """Each implementation of the bus in turn."""
    if request.param == "memory":
        yield MemoryBusMaker()
        return
    maker = KafkaBusMaker(request.getfixturevalue("kafka_server"))
    yield maker
    maker.close()


@pytest.fixture
def bus(bus_maker: BusMaker) -> Iterator[Bus]:
    """One bus of each implementation in turn."""
    opened = bus_maker.bus()
    yield opened
    opened.close()
