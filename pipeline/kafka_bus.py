"""The bus on Apache Kafka, by kafka-python.

What the client leaves to us, as of kafka-python 3.0.12:

- it bounds no memory, so unacknowledged records are counted here;
- a constructor that fails leaves its thread behind, and a connection that fails its socket, so both are closed here;
- a producer that gave up one record may never send another, so it is replaced;
- a join that ends between two polls is forgotten, and a member may be put out without being told: both are mended;
- one partition may stop being fetched while the others go on (#3131, #3106), so a watchdog compares position and end.

Every error of the client becomes a TransportError that names the servers. The client's own log is held at WARNING:
below, it prints its configuration, passwords included, and every record with the picture in it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from math import ceil, inf
from typing import Any, Final, TypeVar

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as KafkaTopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    AuthorizationError,
    CommitFailedError,
    FencedInstanceIdError,
    IllegalGenerationError,
    KafkaConfigurationError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
    UnknownMemberIdError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket
from kafka.net.transport import KafkaSSLTransport
from kafka.partitioner.default import DefaultPartitioner
from kafka.structs import OffsetAndMetadata

from pipeline.bus import Headers, Record, Span, StartAt, TopicPartition, TopicSpec
from pipeline.errors import ConfigError, TransportError
from pipeline.tls import handshake_fault, speaks_tls

logging.getLogger("kafka").setLevel(logging.WARNING)

_log: Final = structlog.get_logger()

RECONNECT_MAX_MS: Final = 2_000  # the client's 30 s would keep us away long after the broker is back
BATCH_BYTES: Final = 262_144  # with the client's own 16 KiB, 8 KB records go at 1.3 k/s instead of 10 k/s
KEYS_REMEMBERED: Final = 50_000
FETCH_MAX_BYTES: Final = 16 << 20  # held per consumer and broker; the client's 50 MiB is an hour of crops
STALL_CHECK_S: Final = 15.0
STALL_QUESTION_MS: Final = 2_000
CLOSE_S: Final = 5.0

_SECURITY: Final = frozenset(
    name for name in KafkaAdminClient.DEFAULT_CONFIG if name.startswith(("security_", "ssl_", "sasl_"))
)
_MEMBERSHIP_LOST: Final = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


@contextlib.contextmanager
def _errors_name(servers: str, doing: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    try:
        yield
    except KafkaConfigurationError as error:
        raise ConfigError(f"Kafka's client does not take these settings: {error}") from None
    except AuthorizationError as error:
        raise TransportError(f"Kafka at {servers} said no while {doing}: {_said(error)}") from error
    except FencedInstanceIdError:
        raise TransportError(
            f"Kafka at {servers} has seen another consumer with this member's name; give each its own"
        ) from None
    except KafkaError as error:
        raise TransportError(
            f"Kafka at {servers} failed while {doing} ({_said(error)}); check that it runs and can be reached"
        ) from error


def _said(error: BaseException) -> str:
    name, text = type(error).__name__, str(error)
    if isinstance(error, AuthorizationError):
        what = name.removesuffix("AuthorizationFailedError").lower()
        return f"this user has no right to that {what}; give it the rights of deploy/security/kafka-acls.sh"
    return text if text.startswith(name) else f"{name}: {text}" if text else name


def _close_failed_connections() -> None:
    """Close the socket of a connection that fails; the client leaves it to the garbage collector, two a second."""
    sock_connect = KafkaNetSocket.sock_connect

    async def connect_or_close(self: Any, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await sock_connect(self, net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise

    KafkaNetSocket.sock_connect = connect_or_close
    handshake = KafkaSSLTransport.handshake

    async def handshake_or_close(self: Any) -> None:
        try:
            await handshake(self)
        except BaseException:
            self._sock.close()
            raise

    KafkaSSLTransport.handshake = handshake_or_close


_close_failed_connections()


def _remember_refusals() -> None:
    """Keep why a broker took no user name and password; the client tries until its time is up, and says that nobody answers.

    The broker says why and hangs up; with TLS, the client sees the one or the other first.
    """
    authenticate = KafkaConnection._sasl_authenticate  # noqa: SLF001

    async def authenticate_and_tell(self: Any, timeout_at: float | None = None) -> None:
        try:
            await authenticate(self, timeout_at)
        except KafkaTimeoutError:
            raise
        except Exception as error:
            self.net.refused = error
            raise

    KafkaConnection._sasl_authenticate = authenticate_and_tell  # noqa: SLF001


_remember_refusals()


class _RememberingPartitioner(DefaultPartitioner):  # type: ignore[misc]  # kafka-python ships no types
    """The client's own partitions, worked out once for every key: it hashes in Python, and the keys are few."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes, int], int] = {}

    def partition(
        self, topic: str, key: object, serialized_key: bytes, value: object, serialized_value: bytes, cluster: Any
    ) -> int:
        """Give the partition; asked anew when the topic gets more of them."""
        where = (topic, serialized_key, len(cluster.partitions_for_topic(topic) or ()))
        known = self._known.get(where)
        if known is None:
            known = super().partition(topic, key, serialized_key, value, serialized_value, cluster)
            if len(self._known) >= KEYS_REMEMBERED:
                self._known.clear()
            self._known[where] = known
        return known


class _Clients:
    """Makes the client's objects; closes the connection of one whose constructor failed."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def make(self, kind: Callable[..., Any], **settings: Any) -> Any:
        opened: list[KafkaNetClient] = []

        def connection(**configuration: Any) -> KafkaNetClient:
            opened.append(KafkaNetClient(**configuration))
            return opened[-1]

        try:
            return kind(**{**self._settings, **settings}, kafka_client=connection)
        except BaseException as error:
            for client in opened:
                client.close()
            if isinstance(error, KafkaError) and (fault := self._fault(opened)):
                raise TransportError(fault) from error
            raise

    def _fault(self, opened: Sequence[KafkaNetClient]) -> str:
        """Say why no broker could be talked to, where it is the password or the certificate; nothing otherwise."""
        servers, protocol = self._settings["bootstrap_servers"], self._settings.get("security_protocol", "PLAINTEXT")
        at = ",".join(servers)
        for client in opened:
            refused = getattr(client._net, "refused", None)  # noqa: SLF001
            if isinstance(refused, UnsupportedSaslMechanismError):
                return f"Kafka at {at} does not take this mechanism; correct DEMOGRAPHICS_KAFKA__SASL_MECHANISM"
            if refused is not None:
                return (
                    f"Kafka at {at} refuses the user name or password; "
                    "correct DEMOGRAPHICS_KAFKA__USERNAME and DEMOGRAPHICS_KAFKA__PASSWORD"
                )
        with_tls = protocol in {"SSL", "SASL_SSL"}
        for server in servers:
            host, _, port = server.rpartition(":")
            if not port.isdecimal():
                continue
            fault = handshake_fault(host.strip("[]"), int(port), self._settings.get("ssl_cafile"))
            if with_tls and fault:
                return (
                    f"Kafka at {server}: {fault}; name the authority of its certificate in DEMOGRAPHICS_KAFKA__CA_FILE, the"
                    " host as the certificate does, and see that DEMOGRAPHICS_KAFKA__SECURITY_PROTOCOL is the listener's"
                )
            if not with_tls and speaks_tls(host.strip("[]"), int(port)):
                return f"Kafka at {server} speaks TLS; set DEMOGRAPHICS_KAFKA__SECURITY_PROTOCOL to SASL_SSL or SSL"
        return ""


class KafkaBusProducer:
    """Appends records, at most *max_in_flight* of them unacknowledged."""

    def __init__(self, connect: Callable[[], Any], *, servers: str, max_in_flight: int, send_timeout_s: float) -> None:
        self._connect = connect
        self._servers = servers
        self._max_in_flight = max_in_flight
        self._send_timeout_s = send_timeout_s
        self._numbers = itertools.count()
        self._in_flight: dict[int, None] = {}  # numbers of unacknowledged records, oldest first
        self._changed = threading.Condition()
        self._lost = 0
        self._lost_because = ""
        self._gave_up = False
        self._renewing = threading.Lock()
        self.closed = False
        self._producer = connect()

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:
        """Hand over one record. What becomes of it is `flush`'s to say; raises ValueError for one that is too large."""
        number = self._number_of_next()
        try:
            with _errors_name(self._servers, f"sending to {topic}"):
                future = self._append(topic, key, value, headers)
        except BaseException:
            self._done(number)
            raise
        future.add_callback(partial(self._done, number))
        future.add_errback(partial(self._failed, number))

    def flush(self, timeout_s: float) -> None:
        """Wait for the acknowledgement of everything sent; raises for what was lost since the last flush, once."""
        last = next(self._numbers)
        with self._changed:
            flushed = self._changed.wait_for(lambda: next(iter(self._in_flight), last) >= last, timeout_s)
            lost, because = self._lost, self._lost_because
            self._lost = 0
            if lost:
                raise TransportError(
                    f"Kafka at {self._servers} did not take {lost} records ({because}); send them again"
                )
            if not flushed:
                raise TransportError(
                    f"Kafka at {self._servers} has not acknowledged {len(self._in_flight)} records"
                    f" within {timeout_s:g} s; check that it runs and can be reached, then flush or send again"
                )

    def close(self) -> None:
        """Flush for a moment, then let go."""
        with self._changed:
            if self.closed:
                return
            self.closed = True
            self._changed.notify_all()
        try:
            self._producer.close(timeout=CLOSE_S)
        except Exception as error:  # noqa: BLE001  the port's close never raises
            _log.warning("producer_closed_with_records_in_flight", records=len(self._in_flight), error=_said(error))
            _force_close(self._producer)

    def _number_of_next(self) -> int:
        """Wait until one more record may be in flight."""
        deadline = time.monotonic() + self._send_timeout_s
        while True:
            if self._gave_up:
                self._renew()
            with self._changed:
                left_s = max(deadline - time.monotonic(), 0.0)
                if not self._changed.wait_for(self._has_room, left_s):
                    raise TransportError(
                        f"Kafka at {self._servers} has acknowledged none of {len(self._in_flight)} records"
                        f" for {self._send_timeout_s:g} s; check that it runs and can be reached, then send again"
                    )
                if self.closed:
                    raise TransportError("the producer is closed")
                if not self._gave_up:
                    number = next(self._numbers)
                    self._in_flight[number] = None
                    return number

    def _has_room(self) -> bool:
        return len(self._in_flight) < self._max_in_flight or self._gave_up or self.closed

    def _renew(self) -> None:
        """Replace the client's producer after it gave up a record, as its documentation recommends.

        After a time-out it may wait for ever for a producer id that it never asks for; after most other errors it refuses
        everything. What it still held is lost to it, and told by `flush`.
        """
        with self._renewing:
            if not self._gave_up or self.closed:
                return
            _force_close(self._producer)
            with _errors_name(self._servers, "connecting a producer"):
                self._producer = self._connect()
            self._gave_up = False
            _log.info("producer_renewed", servers=self._servers)

    def _append(self, topic: str, key: bytes, value: bytes, headers: Headers) -> Any:
        try:
            # Nothing is Kafka's own word for a removal, in a compacted topic; no other record here is empty.
            return self._producer.send(topic, key=key, value=value or None, headers=list(headers))
        except MessageSizeTooLargeError as error:
            raise ValueError(f"for {topic}: {error}") from None

    def _done(self, number: int, _: object = None) -> None:
        with self._changed:
            self._in_flight.pop(number, None)
            self._changed.notify_all()

    def _failed(self, number: int, error: BaseException) -> None:
        with self._changed:
            first = not self._lost
            self._lost += 1
            self._lost_because = _said(error)
            self._gave_up = True
        if first and not self.closed:
            _log.warning("records_not_taken_by_kafka", servers=self._servers, error=_said(error))
        self._done(number)


def _force_close(producer: Any) -> None:
    """Close a producer that cannot send what it holds; its close() gives up where its flush does, thread and all."""
    with contextlib.suppress(Exception):
        producer._sender.force_close()  # noqa: SLF001
        producer._sender.join(CLOSE_S)  # noqa: SLF001
        producer.close(timeout=CLOSE_S)


class _Assignment(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python ships no types
    """What the client's own thread tells: partitions whose start is still to be asked, and partitions that are gone."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._lock = threading.Lock()
        self.new: set[KafkaTopicPartition] = set()
        self.gone: set[KafkaTopicPartition] = set()

    def on_partitions_assigned(self, assigned: set[KafkaTopicPartition]) -> None:
        with self._lock:
            self.new |= set(assigned)
        _log.info("partitions_assigned", group=self._group, partitions=_numbers(assigned))

    def on_partitions_revoked(self, revoked: set[KafkaTopicPartition]) -> None:
        self._let_go(revoked)
        _log.info("partitions_revoked", group=self._group, partitions=_numbers(revoked))

    def on_partitions_lost(self, lost: set[KafkaTopicPartition]) -> None:
        self._let_go(lost)
        _log.warning("partitions_lost", group=self._group, partitions=_numbers(lost))

    def _let_go(self, partitions: set[KafkaTopicPartition]) -> None:
        with self._lock:
            self.new -= set(partitions)
            self.gone |= set(partitions)

    def take_gone(self) -> set[KafkaTopicPartition]:
        with self._lock:
            gone, self.gone = self.gone, set()
            return gone

    def take_new(self) -> set[KafkaTopicPartition]:
        with self._lock:
            new, self.new = self.new, set()
            return new

    def ask_again(self, partitions: set[KafkaTopicPartition]) -> None:
        with self._lock:
            self.new |= partitions


def _numbers(partitions: set[KafkaTopicPartition]) -> list[int]:
    return sorted(tp.partition for tp in partitions)


def _mend_joins(coordinator: Any) -> None:
    """Have joins do what kafka-python 3.0.12 forgets in its `join_group_async`.

    A join that ended between two polls is taken for none and begun anew. That makes every other member join again, whose
    joins end between their polls in turn, and the group never gets its partitions: so the result is kept.

    A member that learns only from its join that it was put out is not told that its partitions were lost. It reads on
    where it was, though another may have read and counted there meanwhile: so the join is prepared again, and tells.
    """
    join_group, reset_generation = coordinator.join_group_async, coordinator.reset_generation

    async def join_group_with_result(timeout_ms: float | None = None) -> bool:
        join = coordinator._join_task  # noqa: SLF001
        if join is not None and join.succeeded() and not coordinator._generation.is_lost():  # noqa: SLF001

            async def result() -> bytes:
                return join.value  # type: ignore[no-any-return]

            coordinator._join_task = coordinator._manager.call_soon(result)  # noqa: SLF001  not done yet: it is awaited
        joined: bool = await join_group(timeout_ms=timeout_ms)
        return joined

    def reset_and_prepare_again(*arguments: Any, **named: Any) -> None:
        reset_generation(*arguments, **named)
        coordinator.rejoining = False

    coordinator.join_group_async = join_group_with_result
    coordinator.reset_generation = reset_and_prepare_again


class KafkaBusConsumer:
    """One member of a group, reading one topic."""

    def __init__(
        self,
        consumer: Any,
        topic: str,
        *,
        group: str,
        servers: str,
        start_at: StartAt | None,
        timeout_s: float,
        on_stall: Callable[[TopicPartition], None] | None,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._group = group
        self._servers = servers
        self._start_at = start_at
        self._timeout_s = timeout_s
        self._on_stall = on_stall
        self._owed: dict[
            KafkaTopicPartition, int
        ] = {}  # commits that a rebalance has refused, for partitions still ours
        self._stall_check_at = time.monotonic() + STALL_CHECK_S
        self._behind: dict[KafkaTopicPartition, int] = {}  # positions that had not reached the end at the last check
        self.closed = False
        self._assignment = _Assignment(group)
        _mend_joins(consumer._coordinator)  # noqa: SLF001
        consumer.subscribe([topic], listener=self._assignment)

    def poll(self, timeout_s: float, max_records: int) -> Sequence[Record]:
        """Give the next records; empty after *timeout_s*, also while no broker answers."""
        self._raise_if_closed()
        deadline = time.monotonic() + timeout_s
        while True:
            with _errors_name(self._servers, f"reading {self._topic}"):
                self._forget_gone()
                self._pay_owed()
                self._watch_for_stalls()
                left_s = max(deadline - time.monotonic(), 0.0)
                fetched = self._consumer.poll(timeout_ms=ceil(left_s * 1000), max_records=max_records)
                self._begin_new(fetched)
            if records := [_record(record) for part in fetched.values() for record in part]:
                return records
            if time.monotonic() >= deadline:
                return ()

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit; while the group rebalances it is remembered, and repeated by `poll` for what is still ours then."""
        self._raise_if_closed()
        self._forget_gone()
        ours = self._consumer.assignment()
        wanted = {KafkaTopicPartition(*tp): offset for tp, offset in offsets.items()}
        self._commit({tp: offset for tp, offset in wanted.items() if tp in ours})

    def begin_again(self, partitions: Collection[TopicPartition]) -> None:
        """Have the next poll ask where to read these partitions from."""
        ours = self._consumer.assignment()
        self._assignment.ask_again({tp for tp in map(_kafka, partitions) if tp in ours})

    def span(self, partition: TopicPartition) -> Span:
        """Ask the broker what a log holds."""
        return _spans(self._consumer, [partition], self._servers, self._timeout_s)[partition]

    def assignment(self) -> frozenset[TopicPartition]:
        """Name the partitions that are ours now."""
        return frozenset(TopicPartition(tp.topic, tp.partition) for tp in self._consumer.assignment())

    def lag(self) -> Mapping[TopicPartition, int]:
        """Count the records not yet given out, per partition, as of the last answer that a broker gave for it."""
        lags = {}
        for tp in self._consumer.assignment():
            position, end = self._position(tp), self._highwater(tp)
            if position is not None and end is not None:
                lags[TopicPartition(tp.topic, tp.partition)] = max(end - position, 0)
        return lags

    def close(self) -> None:
        """Leave the group; a static member's place is kept for the session time-out."""
        if self.closed:
            return
        self.closed = True
        try:
            self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_S * 1000))
        except Exception as error:  # noqa: BLE001  the port's close never raises
            _log.warning("consumer_closed_with_error", group=self._group, error=_said(error))

    def _begin_new(self, fetched: dict[KafkaTopicPartition, list[Any]]) -> None:
        """Place newly assigned partitions where `start_at` says, before any of their records is given out."""
        new = self._assignment.take_new()
        if self._start_at is None:
            return
        for tp in sorted(new):
            try:
                offset = self._start_at(TopicPartition(tp.topic, tp.partition))
            except BaseException:
                self._assignment.ask_again(new)
                for part, records in fetched.items():  # they are not given out now: read them again
                    self._seek(part, records[0].offset)
                raise
            new = new - {tp}
            if offset is not None:
                fetched.pop(tp, None)
                self._seek(tp, offset)

    def _seek(self, tp: KafkaTopicPartition, offset: int) -> None:
        with contextlib.suppress(ValueError, KeyError):  # it may be another's by now
            self._consumer.seek(tp, offset)

    def _forget_gone(self) -> None:
        for tp in self._assignment.take_gone():
            self._owed.pop(tp, None)
            self._behind.pop(tp, None)

    def _commit(self, offsets: dict[KafkaTopicPartition, int]) -> None:
        if not offsets:
            return
        positions = {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()}
        for tp in offsets:
            self._owed.pop(tp, None)
        try:
            with _errors_name(self._servers, f"committing offsets of {self._topic}"):
                self._consumer.commit(positions, timeout_ms=int(self._timeout_s * 1000))
        except TransportError as error:
            if not isinstance(error.__cause__, _MEMBERSHIP_LOST):
                raise
            self._owed.update(offsets)

    def _pay_owed(self) -> None:
        if self._owed:
            ours = self._consumer.assignment()
            self._commit({tp: offset for tp, offset in self._owed.items() if tp in ours})

    def _watch_for_stalls(self) -> None:
        """Fetch a partition anew whose position stood still for a whole check's time before the end of the log."""
        now = time.monotonic()
        if now < self._stall_check_at:
            return
        self._stall_check_at = now + STALL_CHECK_S
        still = {tp: at for tp, at in self._behind.items() if self._position(tp) == at}
        positions = {tp: at for tp in self._consumer.assignment() if (at := self._position(tp)) is not None}
        try:
            ends = self._consumer.end_offsets(list(positions), timeout_ms=STALL_QUESTION_MS) if positions else {}
        except KafkaError:  # no broker answers, so there is more to wait for than this
            ends = {}
        self._behind = {tp: at for tp, at in positions.items() if ends.get(tp, at) > at}
        for tp in still.keys() & self._behind.keys():
            _log.warning("partition_stalled", group=self._group, partition=tp.partition, lag=ends[tp] - still[tp])
            self._seek(tp, still[tp])
            if self._on_stall:
                self._on_stall(TopicPartition(tp.topic, tp.partition))

    def _position(self, tp: KafkaTopicPartition) -> int | None:
        # The public position() may ask the network; what it would answer without lies here.
        state = self._consumer._subscription.assignment.get(tp)  # noqa: SLF001
        return state.position.offset if state is not None and state.position is not None else None

    def _highwater(self, tp: KafkaTopicPartition) -> int | None:
        state = self._consumer._subscription.assignment.get(tp)  # noqa: SLF001
        return state.highwater if state is not None else None

    def _raise_if_closed(self) -> None:
        if self.closed:
            raise TransportError("the consumer is closed")


def _kafka(partition: TopicPartition) -> KafkaTopicPartition:
    return KafkaTopicPartition(*partition)


def _spans(
    consumer: Any, partitions: Sequence[TopicPartition], servers: str, timeout_s: float
) -> dict[TopicPartition, Span]:
    asked = {tp: _kafka(tp) for tp in partitions}
    with _errors_name(servers, "asking what a log holds"):
        begin = consumer.beginning_offsets(list(asked.values()), timeout_ms=int(timeout_s * 1000))
        end = consumer.end_offsets(list(asked.values()), timeout_ms=int(timeout_s * 1000))
    return {tp: Span(begin[kafka], end[kafka]) for tp, kafka in asked.items()}


def _record(record: Any) -> Record:
    return Record(
        record.topic,
        record.partition,
        record.offset,
        record.key or b"",
        record.value or b"",
        tuple((name, bytes(text or b"")) for name, text in record.headers),
        record.timestamp / 1000,
    )


class KafkaBusReader:
    """Looks into one topic, with no group."""

    def __init__(self, consumer: Any, topic: str, *, servers: str, timeout_s: float) -> None:
        self._consumer = consumer
        self._topic = topic
        self._servers = servers
        self._timeout_s = timeout_s
        self.closed = False

    def partitions(self) -> list[TopicPartition]:
        """List the topic's logs; none where there is no such topic."""
        with _errors_name(self._servers, f"looking for {self._topic}"):
            return sorted(
                TopicPartition(self._topic, n) for n in self._consumer.partitions_for_topic(self._topic) or ()
            )

    def spans(self) -> Mapping[TopicPartition, Span]:
        """Ask the broker what each log holds."""
        return _spans(self._consumer, self.partitions(), self._servers, self._timeout_s)

    def since(self, at: float) -> Mapping[TopicPartition, int]:
        """Ask the broker for each log's first offset that was taken at *at* or later."""
        spans = self.spans()
        with _errors_name(self._servers, f"looking for a time in {self._topic}"):
            found = self._consumer.offsets_for_times(
                {_kafka(tp): int(at * 1000) for tp in spans}, timeout_ms=int(self._timeout_s * 1000)
            )
        return {tp: known.offset if (known := found.get(_kafka(tp))) else span.end for tp, span in spans.items()}

    def read(self, partition: TopicPartition, begin: int, end: int) -> Iterator[Record]:
        """Give the records of one log from *begin* to before *end*; raises TransportError when nothing comes any more."""
        kafka, span = _kafka(partition), _spans(self._consumer, [partition], self._servers, self._timeout_s)[partition]
        at, end = max(begin, span.begin), min(end, span.end)
        if at >= end:
            return
        self._consumer.assign([kafka])
        self._consumer.seek(kafka, at)
        give_up = time.monotonic() + self._timeout_s
        while at < end:
            with _errors_name(self._servers, f"reading {self._topic}"):
                fetched = self._consumer.poll(timeout_ms=500)
                reached = self._consumer.position(kafka, timeout_ms=int(self._timeout_s * 1000))
            if reached > at:
                at, give_up = reached, time.monotonic() + self._timeout_s
            elif time.monotonic() > give_up:
                raise TransportError(
                    f"Kafka at {self._servers} gave nothing of {self._topic} for {self._timeout_s:g} s"
                )
            for record in fetched.get(kafka, ()):
                if record.offset < end:
                    yield _record(record)

    def close(self) -> None:
        """Let go."""
        if not self.closed:
            self.closed = True
            with contextlib.suppress(Exception):
                self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_S * 1000))


_Opened = TypeVar("_Opened", KafkaBusProducer, KafkaBusConsumer, KafkaBusReader)


class KafkaBus:
    """Apache Kafka at *bootstrap_servers*, "host:port,host:port".

    *security* goes to the client as it is: security_protocol, sasl_mechanism, sasl_plain_username, sasl_plain_password,
    ssl_cafile and so on. Nothing connects before the first call, and none waits longer than *timeout_s* for an answer.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        security: Mapping[str, Any] | None = None,
        client_id: str = "demographics",
        timeout_s: float = 10.0,
        session_timeout_s: float = 45.0,
        heartbeat_interval_s: float = 3.0,
        max_poll_interval_s: float = 300.0,
        delivery_timeout_s: float = 120.0,
        max_message_bytes: int = 1 << 20,
        on_stall: Callable[[TopicPartition], None] | None = None,
    ) -> None:
        if unknown := set(security or ()) - _SECURITY:
            raise ConfigError(
                f"Kafka's client knows no {name}; it knows {', '.join(sorted(_SECURITY))}" for name in unknown
            )
        self._servers = bootstrap_servers
        self._timeout_s = timeout_s
        self._session_timeout_s = session_timeout_s
        self._heartbeat_interval_s = heartbeat_interval_s
        self._max_poll_interval_s = max_poll_interval_s
        self._delivery_timeout_s = delivery_timeout_s
        self._max_message_bytes = max_message_bytes
        self._on_stall = on_stall
        self._clients = _Clients(
            {
                **(security or {}),
                "bootstrap_servers": [server.strip() for server in bootstrap_servers.split(",")],
                "client_id": client_id,
                "bootstrap_timeout_ms": int(timeout_s * 1000),
                "request_timeout_ms": int(timeout_s * 1000),
                "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
            }
        )
        self._lock = threading.Lock()
        self._opened: list[KafkaBusProducer | KafkaBusConsumer | KafkaBusReader] = []

    def ensure_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing and wait until it can be used; an existing topic keeps its settings."""
        with (
            _errors_name(self._servers, "creating topics"),
            contextlib.closing(self._clients.make(KafkaAdminClient)) as admin,
        ):
            there = set(admin.list_topics())
            missing = {spec.name: _creation(spec) for spec in topics if spec.name not in there}
            for name, creation in missing.items():
                with contextlib.suppress(TopicAlreadyExistsError):  # another was as quick
                    admin.create_topics({name: creation}, timeout_ms=int(self._timeout_s * 1000))
                    _log.info("topic_created", topic=name, partitions=creation["num_partitions"])
            admin.wait_for_topics(list(missing), timeout_ms=int(self._timeout_s * 1000))

    def retentions(self, topics: Sequence[str]) -> dict[str, float]:
        """Say how long the broker keeps each topic's records, in seconds; infinity for ever. Raises TransportError."""
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        with (
            _errors_name(self._servers, "reading the topics' settings"),
            contextlib.closing(self._clients.make(KafkaAdminClient)) as admin,
        ):
            described = admin.describe_configs(wanted, config_filter="all")["topic"]
        return {
            topic: _retention_s({key: entry["value"] for key, entry in entries.items()})
            for topic in topics
            if (entries := described.get(topic))  # a topic that is not there has none
        }

    @contextlib.contextmanager
    def asking(self, what: str) -> Iterator[Any]:
        """Lend the client that administers, to ask *what*; its errors become ours. Raises TransportError."""
        with (
            _errors_name(self._servers, what),
            contextlib.closing(self._clients.make(KafkaAdminClient)) as admin,
        ):
            yield admin

    def producer(self, *, max_in_flight: int = 1000, send_timeout_s: float = 10.0) -> KafkaBusProducer:
        """Open a producer; raises TransportError when no broker answers."""
        connect = partial(
            self._clients.make,
            KafkaProducer,
            acks="all",
            enable_idempotence=True,
            batch_size=BATCH_BYTES,
            linger_ms=5,
            partitioner=_RememberingPartitioner(),
            max_request_size=self._max_message_bytes,
            max_block_ms=int(send_timeout_s * 1000),
            delivery_timeout_ms=int(self._delivery_timeout_s * 1000),
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        with _errors_name(self._servers, "connecting a producer"):
            made = KafkaBusProducer(
                connect, servers=self._servers, max_in_flight=max_in_flight, send_timeout_s=send_timeout_s
            )
        return self._keep(made)

    def consumer(
        self, topic: str, *, group: str, member: str | None = None, start_at: StartAt | None = None
    ) -> KafkaBusConsumer:
        """Join *group* on *topic*; raises TransportError when no broker answers."""
        with _errors_name(self._servers, "connecting a consumer"):
            consumer = self._clients.make(
                KafkaConsumer,
                group_id=group,
                group_instance_id=member,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                partition_assignment_strategy=[CooperativeStickyAssignor],
                session_timeout_ms=int(self._session_timeout_s * 1000),
                heartbeat_interval_ms=int(self._heartbeat_interval_s * 1000),
                max_poll_interval_ms=int(self._max_poll_interval_s * 1000),
                fetch_max_bytes=FETCH_MAX_BYTES,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        made = self._keep(
            KafkaBusConsumer(
                consumer,
                topic,
                group=group,
                servers=self._servers,
                start_at=start_at,
                timeout_s=self._timeout_s,
                on_stall=self._on_stall,
            )
        )
        known: set[int] = set()
        try:
            with _errors_name(self._servers, f"looking for {topic}"):
                known = consumer.partitions_for_topic(topic)
        finally:
            if not known:
                made.close()
        if not known:
            raise TransportError(_missing(topic, self._servers))
        return made

    def reader(self, topic: str) -> KafkaBusReader:
        """Look into *topic*; raises TransportError when no broker answers."""
        with _errors_name(self._servers, "connecting a reader"):
            consumer = self._clients.make(
                KafkaConsumer,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                fetch_max_bytes=FETCH_MAX_BYTES,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        made = self._keep(KafkaBusReader(consumer, topic, servers=self._servers, timeout_s=self._timeout_s))
        try:
            known = made.partitions()
        except TransportError:
            made.close()
            raise
        if not known:
            made.close()
            raise TransportError(_missing(topic, self._servers))
        return made

    def close(self) -> None:
        """Close every producer, consumer and reader that was opened here."""
        with self._lock:
            opened, self._opened = self._opened, []
        for one in opened:
            one.close()

    def _keep(self, made: _Opened) -> _Opened:
        with self._lock:
            self._opened = [*(one for one in self._opened if not one.closed), made]
        return made


def _missing(topic: str, servers: str) -> str:
    return (
        f"there is no topic {topic} at {servers} that this user may see; "
        "ensure_topics creates it, deploy/security/kafka-acls.sh gives the right"
    )


def _retention_s(configuration: Mapping[str, Any]) -> float:
    """Say what a topic's settings mean: a record lies in its segment until that is closed, and then for the retention."""
    retention_ms = int(configuration["retention.ms"])
    if retention_ms < 0 or "delete" not in str(configuration["cleanup.policy"]):
        return inf
    return (retention_ms + min(int(configuration["segment.ms"]), retention_ms)) / 1000


def _creation(spec: TopicSpec) -> dict[str, Any]:
    """Say how a topic is created.

    A segment that is written to is not deleted, so none is for longer than a quarter of the retention; nor is deletion
    put off. The log's own clock stamps the records: a wrong clock at a producer must not keep them.
    """
    retention_ms = max(int(spec.retention_s * 1000), 1)
    if spec.compact:
        return {
            "num_partitions": spec.partitions,
            "replication_factor": spec.replication,
            "configs": {
                "cleanup.policy": "compact",
                "segment.ms": "3600000",
                "min.cleanable.dirty.ratio": "0.1",
                "message.timestamp.type": "LogAppendTime",
            },
        }
    return {
        "num_partitions": spec.partitions,
        "replication_factor": spec.replication,
        "configs": {
            "cleanup.policy": "delete",
            "retention.ms": str(retention_ms),
            "segment.ms": str(max(retention_ms // 4, 1)),
            "file.delete.delay.ms": "1000",
            # To the broker a message is a batch, with some bytes of its own.
            "max.message.bytes": str(max(spec.max_message_bytes, BATCH_BYTES) + 1024),
            "message.timestamp.type": "LogAppendTime",
        },
    }
