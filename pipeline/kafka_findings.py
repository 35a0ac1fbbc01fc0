"""How Kafka is: brokers, topics with their promises, groups and what waits for them, clock and disks. Only looks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cached_property
from math import inf, isinf
from typing import Final

from pipeline import kafka_survey as survey
from pipeline.bus import FACE_CROPS, PREDICTIONS, TopicPartition, TopicSpec
from pipeline.distributed import open_bus
from pipeline.errors import PipelineError
from pipeline.findings import FULL_RATIO, Away, Finding, State, clock_finding, in_bytes, numbers, span
from pipeline.kafka_bus import KafkaBus
from pipeline.settings import Settings

OLDEST: Final = (2, 5)  # cooperative rebalances with static members; older ones are not spoken to in tests
OLD_S: Final = 60.0  # a record that waits for longer says that the workers do not keep up
GROUPS: Final = {"inference": FACE_CROPS, "aggregator": PREDICTIONS}


class KafkaFindings:
    """Looks at Kafka; once it is away, it is asked nothing more."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._specs = {spec.name: spec for spec in settings.kafka.topics()}
        self._bus: KafkaBus | None = None
        self._away = False

    @cached_property
    def _brokers(self) -> list[survey.Broker]:
        if self._away:
            raise Away("Kafka does not answer")
        try:
            self._bus = open_bus(self._settings.kafka, "demographics-doctor")
            return survey.brokers(self._bus)
        except PipelineError:
            self._away = True
            raise

    @cached_property
    def _topics(self) -> dict[str, survey.Topic]:
        return survey.topics(self.bus, list(self._specs))

    @property
    def bus(self) -> KafkaBus:
        """The way to a Kafka that answers. Raises ConfigError or TransportError the first time, then Away."""
        assert self._brokers
        assert self._bus
        return self._bus

    def close(self) -> None:
        """Let go."""
        if self._bus is not None:
            self._bus.close()

    def has(self, topic: str) -> bool:
        """Whether there is such a topic. Raises as `bus` does."""
        return topic in self._topics

    def brokers(self) -> Iterator[Finding]:
        """Who answers, and whether they will do."""
        brokers = self._brokers
        versions = sorted({broker.version for broker in brokers})
        said = ", ".join(".".join(map(str, version)) for version in versions)
        listed = ", ".join(broker.address for broker in brokers)
        protocol = self._settings.kafka.security_protocol
        yield Finding("kafka", State.OK, f"{len(brokers)} brokers answer ({listed}), version {said}, {protocol}")
        if versions[0] < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            yield Finding(
                "kafka", State.FAILED, f"version {said} is older than {oldest}", f"upgrade Kafka to {oldest} or newer"
            )
        copies = self._settings.kafka.replication
        if copies > len(brokers):
            yield Finding(
                "kafka",
                State.FAILED,
                f"topics are to have {copies} copies, there are {len(brokers)} brokers: none can be created",
                f"set DEMOGRAPHICS_KAFKA__REPLICATION to {len(brokers)}, or add brokers",
            )
        elif copies < min(3, len(brokers)):
            yield Finding(
                "kafka",
                State.WARNING,
                f"there are {len(brokers)} brokers, but new topics get {copies} copies",
                "set DEMOGRAPHICS_KAFKA__REPLICATION=3 before the topics are created: one broker's end must lose nothing",
            )

    def topics(self) -> Iterator[Finding]:
        """Whether they are there, and keep what they promise."""
        kept = self.bus.retentions(list(self._topics)) if self._topics else {}
        if missing := [name for name in self._specs if name not in self._topics]:
            yield Finding(
                "topics",
                State.WARNING,
                f"not there: {', '.join(missing)}",
                "start a service: each creates what is missing, if it may; else create them as docs/operations.md says",
            )
        for name, topic in self._topics.items():
            yield from self._topic(self._specs[name], topic, kept.get(name))
        yield from self._partitions()

    def _partitions(self) -> Iterator[Finding]:
        wanted = self._settings.kafka.partitions
        if other := {name: topic.partitions for name, topic in self._topics.items() if topic.partitions != wanted}:
            listed = ", ".join(f"{name} has {count}" for name, count in other.items())
            yield Finding(
                "topics",
                State.WARNING,
                f"the setting says {wanted} partitions, {listed}: an existing topic keeps its own, and no more workers"
                " than partitions have work",
                "set DEMOGRAPHICS_KAFKA__PARTITIONS to what is there; to have more, see docs/operations.md:"
                " adding some moves cameras to other partitions",
            )

    def _topic(self, spec: TopicSpec, topic: survey.Topic, kept_s: float | None) -> Iterator[Finding]:
        bad = list(_retention(spec, kept_s, self._settings.kafka.bootstrap_servers))
        if topic.without_leader:
            bad.append(
                Finding(
                    "topics",
                    State.FAILED,
                    f"{spec.name}: nobody leads the partitions {numbers(topic.without_leader)}",
                    "start the brokers that are down",
                )
            )
        if topic.behind:
            bad.append(
                Finding(
                    "topics",
                    State.WARNING,
                    f"{spec.name}: copies are missing of the partitions {numbers(topic.behind)}",
                    "start the brokers that are down, or wait until they have caught up",
                )
            )
        yield from bad or [
            Finding(
                "topics",
                State.OK,
                f"{spec.name}: {topic.partitions} partitions, {topic.replication} copies, "
                + ("compacted" if spec.compact else f"kept for {span(kept_s or 0)}"),
            )
        ]

    def groups(self) -> Iterator[Finding]:
        """Whether somebody reads what is written, and keeps up."""
        for name, topic in GROUPS.items():
            if not self.has(topic):
                yield Finding("groups", State.SKIPPED, f"{name}: there is no topic {topic}", "start a service")
                continue
            group = survey.group(self.bus, name)
            waiting, oldest_s = self._waiting(topic, group.committed if group else {})
            yield group_finding(name, topic, group, waiting, oldest_s, self._specs[topic].retention_s)

    def _waiting(self, topic: str, committed: Mapping[TopicPartition, int]) -> tuple[int, float]:
        """Count the records that a group has not committed, and say how long the oldest has waited."""
        count, oldest = 0, inf
        with closing(self.bus.reader(topic)) as reader:
            for tp, span in reader.spans().items():
                at = max(committed.get(tp, span.begin), span.begin)
                if at < span.end:
                    count += span.end - at
                    oldest = min([oldest, *(record.timestamp for record in reader.read(tp, at, at + 1))])
        return count, max(0.0, time.time() - oldest) if count else 0.0

    def clock(self) -> Iterator[Finding]:
        """Compare with the newest record: the log's own clock stamped it, so none can be from the future."""
        if not self.has(PREDICTIONS):
            yield Finding(
                "clock", State.SKIPPED, "Kafka's: there is no record to see it by", "start the services, ask again"
            )
            return
        newest = 0.0
        with closing(self.bus.reader(PREDICTIONS)) as reader:
            for tp, span in reader.spans().items():
                if span.end > span.begin:
                    newest = max([newest, *(record.timestamp for record in reader.read(tp, span.end - 1, span.end))])
        if not newest:
            yield Finding("clock", State.OK, "Kafka's: no record yet to see it by")
        else:
            yield clock_finding("Kafka", newest - time.time(), known_behind=False)

    def disks(self) -> Iterator[Finding]:
        """Whether the brokers have room."""
        for disk in survey.disks(self.bus, list(self._topics)) if self._topics else ():
            used = 1 - disk.usable_bytes / disk.total_bytes
            yield Finding(
                "disk",
                State.OK if used < FULL_RATIO else State.WARNING,
                f"Kafka's broker {disk.broker}: {used:.0%} of {in_bytes(disk.total_bytes)} used",
                "" if used < FULL_RATIO else "make room: a broker whose disk is full stops",
            )


def _retention(spec: TopicSpec, kept_s: float | None, servers: str) -> Iterator[Finding]:
    if kept_s is None:
        return
    alter = f"kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {{}} --add-config {{}}"
    if spec.compact:
        if not isinf(kept_s):
            yield Finding(
                "topics",
                State.FAILED,
                f"{spec.name}: old records are deleted, and cameras with them",
                alter.format(spec.name, "cleanup.policy=compact"),
            )
        return
    wanted_ms = int(spec.retention_s * 1000)
    change = alter.format(spec.name, f"cleanup.policy=delete,retention.ms={wanted_ms},segment.ms={wanted_ms // 4}")
    if (
        kept_s > spec.retention_s * 1.26
    ):  # a record lies in its segment, too: a quarter of the retention as we create them
        yield Finding(
            "topics",
            State.FAILED if spec.name == FACE_CROPS else State.WARNING,
            f"{spec.name}: kept for {span(kept_s)}, the setting says {span(spec.retention_s)}"
            + (": pictures outlive their use" if spec.name == FACE_CROPS else ""),
            change,
        )
    elif kept_s < spec.retention_s * 0.99:
        yield Finding(
            "topics",
            State.WARNING,
            f"{spec.name}: kept for {span(kept_s)} only, the setting says {span(spec.retention_s)}",
            change,
        )


def group_finding(
    name: str, topic: str, group: survey.Group | None, waiting: int, oldest_s: float, kept_s: float
) -> Finding:
    """Judge a group by who is there, and by how long the oldest record waits, seconds."""
    lag = f"{waiting} records wait" + (f", the oldest for {span(oldest_s)}" if waiting else "")
    start = f"start `demographics {'infer' if name == 'inference' else 'aggregate'}`"
    if group is None or not group.members:
        never = "nobody has ever joined" if group is None else "nobody is there"
        return Finding("groups", State.WARNING, f"{name}: {never}; {lag}", start)
    told = f"{name}: {group.members} members, {group.state.lower()}; {lag}"
    if oldest_s > kept_s / 2:
        return Finding(
            "groups",
            State.FAILED,
            f"{told}: {topic} keeps records for {span(kept_s)}, so some will be gone before they are read",
            f"add workers now (up to one for each partition); docs/runbooks.md, {name} falling behind",
        )
    if oldest_s > OLD_S:
        return Finding(
            "groups", State.WARNING, told, f"add workers, and see their logs and /readyz: {name} falls behind"
        )
    return Finding("groups", State.OK, told)
