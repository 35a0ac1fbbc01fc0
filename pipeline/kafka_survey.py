"""What a Kafka says of itself, for whoever wants to know how it is: brokers, topics, groups. Nothing is written.

Each question is one function, so that one that the brokers do not allow keeps nobody from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.bus import TopicPartition
from pipeline.errors import TransportError
from pipeline.kafka_bus import KafkaBus


class Broker(NamedTuple):
    """One server."""

    id: int
    address: str
    version: tuple[int, ...]  # as its API shows it; patch releases are not told apart


class Topic(NamedTuple):
    """One topic, as the brokers have it."""

    partitions: int
    replication: int
    without_leader: tuple[int, ...]  # partitions that nobody can write to or read from
    behind: tuple[int, ...]  # partitions with fewer copies than they should have


class Group(NamedTuple):
    """One consumer group."""

    state: str
    members: int
    committed: Mapping[TopicPartition, int]


class Disk(NamedTuple):
    """What a broker's logs lie on."""

    broker: int
    total_bytes: int
    usable_bytes: int


def brokers(bus: KafkaBus) -> list[Broker]:
    """List the brokers. Raises TransportError."""
    with bus.asking("asking for its brokers") as admin:
        return [
            Broker(
                one["broker_id"],
                f"{one['host']}:{one['port']}",
                tuple(admin.get_broker_version_data(one["broker_id"]).broker_version),
            )
            for one in admin.describe_cluster()["brokers"]
        ]


def topics(bus: KafkaBus, names: Sequence[str]) -> dict[str, Topic]:
    """Describe those of *names* that there are. Raises TransportError."""
    with bus.asking("asking for its topics") as admin:
        found = admin.describe_topics(list(names))
    return {topic["name"]: _topic(topic["partitions"]) for topic in found if not topic["error_code"]}


def _topic(partitions: Sequence[Mapping[str, Any]]) -> Topic:
    return Topic(
        partitions=len(partitions),
        replication=min((len(each["replica_nodes"]) for each in partitions), default=0),
        without_leader=tuple(sorted(each["partition_index"] for each in partitions if each["leader_id"] < 0)),
        behind=tuple(
            sorted(
                each["partition_index"] for each in partitions if len(each["isr_nodes"]) < len(each["replica_nodes"])
            )
        ),
    )


def group(bus: KafkaBus, name: str) -> Group | None:
    """Describe a consumer group; None where nobody ever joined it. Raises TransportError."""
    with bus.asking(f"asking for the group {name}") as admin:
        # Asked for a group that it does not know, a broker would begin to keep offsets for it.
        if name not in {listed["group_id"] for listed in admin.list_groups()}:
            return None
        found = admin.describe_groups([name])[name]
        if found["error"]:
            raise TransportError(f"Kafka does not tell of the group {name}: {found['error']}")
        committed = {
            TopicPartition(tp.topic, tp.partition): offset.offset
            for tp, offset in admin.list_group_offsets([name])[name].items()
            if offset.offset >= 0
        }
    return Group(str(found["group_state"]), len(found["members"]), committed)


def disks(bus: KafkaBus, names: Sequence[str]) -> list[Disk]:
    """Say what the logs of topics lie on; brokers before 3.3 do not say. Raises TransportError."""
    with bus.asking("asking for its disks") as admin:
        found = admin.describe_log_dirs(topic_partitions=list(names))
    return [
        Disk(broker["broker"], folder["total_bytes"], folder["usable_bytes"])
        for broker in found
        for folder in broker["log_dirs"]
        if folder.get("total_bytes", -1) > 0
    ]
