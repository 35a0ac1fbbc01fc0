"""`demographics replay`: the counts made again from the log of predictions, and compared with the live ones."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from aggregator.handler import CountingHandler
from aggregator.redis_store import Keep, RedisStore
from aggregator.replay import Outcome, replay_and_compare
from aggregator.service import counting_of, windows_of
from aggregator.windows import retentions
from pipeline.bus import PREDICTIONS, Reader, TopicPartition
from pipeline.distributed import open_bus
from pipeline.errors import ConfigError
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

BEGINNING: Final = "beginning"
MOST_SHOWN: Final = 20


def parse_start(text: str) -> int | datetime:
    """Read --from: `beginning`, an offset, or a time such as 2026-11-25T09:00:00+01:00. Raises ConfigError."""
    if text == BEGINNING:
        return 0
    if text.isdecimal():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--from {text}: neither {BEGINNING}, an offset nor a time; write a time as 2026-11-25T09:00:00+01:00"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def starts_of(start: int | datetime, reader: Reader) -> dict[TopicPartition, int]:
    """Say where each log is read from. Raises TransportError."""
    if isinstance(start, int):
        return dict.fromkeys(reader.spans(), start)
    return dict(reader.since(start.timestamp()))


def run_replay(settings: Settings, start: str, namespace: str | None, *, verify: bool) -> dict[str, Any]:
    """Replay and give what came of it; a namespace that was not named is deleted after a comparison.

    Raises ConfigError and TransportError.
    """
    begin, live_name = parse_start(start), settings.redis.namespace
    name = namespace or f"{live_name[:20]}-replay-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    if name == live_name:
        raise ConfigError(f"--into {name}: the live counts are there; name another namespace")
    kept = retentions(windows_of(settings))
    url = settings.redis.url.get_secret_value()
    with ExitStack() as stack:
        gone_after = Keep(int(settings.redis.tracks_retention_s), int(settings.redis.totals_retention_s))
        live, fresh = (
            RedisStore(url, kept, namespace=each, keep=gone_after, ca_file=settings.redis.ca_file)
            for each in (live_name, name)
        )
        stack.callback(live.close)
        stack.callback(fresh.close)
        bus = open_bus(settings.kafka, "demographics-replay")
        stack.callback(bus.close)
        reader = bus.reader(PREDICTIONS)
        spans = reader.spans()
        if any(fresh.positions([tp.partition for tp in spans]).values()):
            raise ConfigError(f"--into {name}: there are counts already; name a fresh namespace")
        starts = starts_of(begin, reader)
        if verify and namespace is None:
            stack.callback(fresh.drop)
        letters: list[int] = []
        handler = CountingHandler(
            fresh,
            counting_of(settings),
            Telemetry(("aggregator",)),
            dead_letter=lambda record, _: letters.append(record.offset),  # they have been written down already
            publish=lambda _: None,
        )
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("replaying", total=sum(span.end - span.begin for span in spans.values()))
            outcome = replay_and_compare(
                live, fresh, handler, reader, starts, kept,
                verify=verify, clock=time.time, taken=lambda records: progress.advance(task, records),
            )  # fmt: skip
    return _document(outcome, "" if verify and namespace is None else name, len(spans), len(letters), verify=verify)


def _document(outcome: Outcome, namespace: str, partitions: int, undecodable: int, *, verify: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "records": outcome.records,
        "undecodable": undecodable,
        "partitions": partitions,
        "namespace": namespace,
        "complete": outcome.totals_compared,
    }
    if verify:
        document |= {
            "cells": outcome.cells,
            "compared_since": outcome.compared_since,
            "difference": outcome.difference,
            "differences": [one._asdict() for one in outcome.differences[:MOST_SHOWN]],
        }
    return document


def replay_text(document: dict[str, Any]) -> str:
    """Say it to people."""
    lines = [f"{document['records']} records of {document['partitions']} partitions replayed"]
    if not document["complete"]:
        lines.append("not from the first record of every partition: totals are of what was replayed only")
    if document["namespace"]:
        lines.append(
            f"counts in namespace {document['namespace']}; "
            f"DEMOGRAPHICS_REDIS__NAMESPACE={document['namespace']} on every aggregator goes on from there"
        )
    if "difference" in document:
        lines.append(f"{document['cells']} cells compared with the live ones: difference {document['difference']}")
        lines += [
            f"  partition {one['partition']}, {one['where']}, {one['cell']}: live {one['live']}, replayed {one['replayed']}"
            for one in document["differences"]
        ]
    return "\n".join(lines)
