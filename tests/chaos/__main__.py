"""Kill everything, again and again, and count exactly all the same: `python -m tests.chaos --kills 50`.

Two scripted ingest workers, three inference workers, two aggregators, a real Apache Kafka and a real Valkey. At random times one
of them, broker and store included, is killed, frozen, restarted, loses its last moments or all that it had; meanwhile the topics
are poisoned. At the end the counters have to equal, in every cell, the script, an independent recount of the predictions topic,
and a replay of it by the product's own command.

The last line on stdout is one JSON object. Exit status 0 where every difference is 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

from aggregator.redis_store import RedisStore
from aggregator.windows import retentions, rolling_windows
from pipeline.bus import DEAD_LETTERS, FACE_CROPS, PREDICTIONS, Record
from pipeline.errors import InvalidMessage, TransportError
from pipeline.kafka_bus import KafkaBus
from pipeline.messages import CameraStatus, DeadLetter, FaceCrop, Prediction, TrackEnded, decode, encode, headers
from tests.chaos.script import Cell, Look, cells, label, picture
from tests.e2e.conftest import ROOT, Service, clean_environment
from tests.servers import KafkaServer, ValkeyServer, wait_until

CAMERAS: Final = tuple(f"camera-{n:02}" for n in range(12))
PARTITIONS: Final = 6
POISON_HEADER: Final = "poison"
SETTLE_S: Final = 240.0

# Each happens at least once, as far as the number of kills allows; the rest is drawn by weight.
FIRST: Final = (
    "inference kill", "aggregator kill", "broker kill", "store kill", "ingest kill", "inference freeze", "aggregator freeze",
    "store power cut", "store lost", "broker freeze", "ingest freeze", "store freeze", "inference restart",
    "aggregator restart", "broker restart",
)  # fmt: skip
WEIGHTS: Final = {
    "inference kill": 10, "inference freeze": 6, "inference restart": 3, "aggregator kill": 8, "aggregator freeze": 5,
    "aggregator restart": 2, "ingest kill": 4, "ingest freeze": 2, "broker kill": 3, "broker freeze": 2, "broker restart": 1,
    "store kill": 3, "store freeze": 1, "store power cut": 2, "store lost": 1,
}  # fmt: skip


class EverySecond(ValkeyServer):
    """Valkey as production keeps it, whose disk can lose what was written last, or everything."""

    def cut_power(self, random: Random) -> None:
        """Kill it, and tear off the end of its append-only file."""
        self.kill()
        for path in (self.directory / "appendonlydir").glob("*.incr.aof"):
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.truncate(size - min(random.randrange(1, 60_000), size))

    def lose(self) -> None:
        """Kill it, and give it an empty disk."""
        self.kill()
        shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)


class Deployment:
    """Every process of the run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, kafka: KafkaServer, valkey: EverySecond) -> None:
        self.arguments = arguments
        self.folder = folder
        self.kafka = kafka
        self.valkey = valkey
        self.random = Random(arguments.seed)
        self.started = time.time()
        self.people = int(arguments.seconds / arguments.interval)
        self.all: list[Service] = []
        self.members: dict[str, Service] = {}
        self.frozen: set[str] = set()
        self.environment = clean_environment(
            DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
            DEMOGRAPHICS_KAFKA__PARTITIONS=str(PARTITIONS),
            DEMOGRAPHICS_KAFKA__SESSION_TIMEOUT_S="6",
            DEMOGRAPHICS_KAFKA__FACE_CROPS_RETENTION_S="3600",  # the bad ones are counted in the end
            DEMOGRAPHICS_REDIS__URL=valkey.url,
            DEMOGRAPHICS_INFERENCE__MAX_BATCH="8",
        )
        self.commands = {
            "ingest-0": self._source(CAMERAS[0::2]),
            "ingest-1": self._source(CAMERAS[1::2]),
            **{f"inference-{n}": ["tests.chaos.infer", "0.02"] for n in range(3)},
            **{f"aggregator-{n}": ["pipeline.cli", "aggregate"] for n in range(2)},
        }

    def _source(self, cameras: tuple[str, ...]) -> list[str]:
        shown = (self.arguments.seed, self.started, self.people, self.arguments.interval, self.folder)
        return ["tests.chaos.source", *map(str, shown), *cameras]

    def start(self, member: str) -> None:
        """Start a member, or its successor."""
        log = self.folder / f"{len(self.all):03}-{member}.log"
        more = (
            {"DEMOGRAPHICS_KAFKA__MEMBER": member} if member == "inference-2" else {}
        )  # one of them is a static member
        self.members[member] = Service(member, (), {**self.environment, **more}, log, command=self.commands[member])
        self.all.append(self.members[member])

    def wait_ready(self) -> None:
        """Wait until everybody works."""
        wait_until(
            lambda: all(one.events("service_ready") for one in self.members.values()), timeout_s=180, what="the start"
        )

    def stop(self) -> None:
        """End everybody."""
        for one in self.members.values():
            with suppress(OSError):
                one.resume()
        for one in self.all:
            one.stop()


class Chaos:
    """What is done to a deployment, by a script of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.random = deployment.random
        self.kills: Counter[str] = Counter()
        self._later: list[tuple[float, Callable[[], object]]] = []

    def run(self, kills: int, seconds: float) -> None:
        """Do *kills* things within *seconds*, at random times."""
        first = tuple(self.deployment.arguments.only or FIRST)
        kinds = [
            *first[:kills],
            *self.random.choices(first, [WEIGHTS[kind] for kind in first], k=max(0, kills - len(first))),
        ]
        self.random.shuffle(kinds)
        began = time.monotonic()
        times = sorted(began + self.random.uniform(0.02, 0.95) * seconds for _ in kinds)
        for at, kind in zip(times, kinds, strict=True):
            self._wait(at)
            self._do(kind)
            with suppress(TransportError):
                poison(self.deployment.kafka, self.random)
        self._wait(began + seconds)
        self._wait(float("inf"))

    def _wait(self, until: float) -> None:
        """Wait, and do meanwhile what is due; for ever means: until nothing is."""
        while time.monotonic() < until and (until != float("inf") or self._later):
            now = time.monotonic()
            due, self._later = [x for x in self._later if x[0] <= now], [x for x in self._later if x[0] > now]
            for _, action in due:
                action()
            time.sleep(0.05)

    def _after(self, least_s: float, most_s: float, action: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + self.random.uniform(least_s, most_s), action))

    def _do(self, kind: str) -> None:
        part, how = kind.split(" ", 1)
        if part in {"broker", "store"}:
            if not self._server(part, how):
                return
        else:
            member = self.random.choice([name for name in self.deployment.members if name.startswith(part)])
            if not self._member(member, how):
                return
        self.kills[kind] += 1
        say(f"{kind}")

    def _server(self, part: str, how: str) -> bool:
        server = self.deployment.kafka if part == "broker" else self.deployment.valkey
        if part in self.deployment.frozen or not server.running:  # it is down already: that is chaos enough for it
            self._after(1, 3, lambda: self._do(f"{part} {how}"))
            return False
        self.deployment.frozen.add(part)
        if how == "freeze":
            server.pause()
            self._after(2, 12, server.resume)
        else:
            {
                "kill": server.kill,
                "restart": server.stop,
                "power cut": lambda: self.deployment.valkey.cut_power(self.random),
                "lost": self.deployment.valkey.lose,
            }[how]()
            self._after(0.5, 8, server.start)
        self._later.append((time.monotonic() + 13, lambda: self.deployment.frozen.discard(part)))
        return True

    def _member(self, member: str, how: str) -> bool:
        service = self.deployment.members[member]
        if member in self.deployment.frozen or service.process.poll() is not None:
            if service.process.poll() is None or not member.startswith("ingest"):
                self._after(1, 3, lambda: self._do(f"{member.partition('-')[0]} {how}"))
            return False
        self.deployment.frozen.add(member)

        def back() -> None:
            self.deployment.frozen.discard(member)
            if how == "freeze":
                service.resume()
            else:
                self.deployment.start(member)

        if how == "freeze":
            service.pause()
            self._after(3, 20, back)
        elif how == "kill":
            service.kill()
            self._after(0, 6, back)
        else:
            service.process.terminate()
            self._later.append((time.monotonic() + 5, lambda: self._restart_once_gone(member, service)))
        return True

    def _restart_once_gone(self, member: str, service: Service) -> None:
        if service.process.poll() is None:
            self._after(0.5, 1, lambda: self._restart_once_gone(member, service))
        else:
            self.deployment.frozen.discard(member)
            self.deployment.start(member)


def poison(kafka: KafkaServer, random: Random) -> None:
    """Put into the topics what will never decode."""
    camera, now = random.choice(CAMERAS), time.time()
    track = (int(now) << 20) + 0xFFFFF
    common: dict[str, Any] = {"camera_id": camera, "track_id": track, "first_seen": now}
    crop = FaceCrop(**common, sequence=0, captured_at=now, quality=0.9, jpeg=picture(30, 1, 1))
    truncated, huge = (
        crop.jpeg[: len(crop.jpeg) // 2],
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + b"0" * 60 + b"\xff\xd9",
    )
    ahead = Prediction(**{**common, "first_seen": now + 90_000}, sequence=0, captured_at=now + 90_000, quality=0.9)
    end = encode(TrackEnded(**common, last_seen=now, crops=1))
    flipped = end.replace(
        track.to_bytes(8, "big"), (track ^ 1).to_bytes(8, "big")
    )  # somebody else's, who would be counted
    assert flipped != end
    old, new = (("schema", b"0"),), (("schema", b"999"),)
    bad: list[tuple[str, bytes, tuple[tuple[str, bytes], ...]]] = [
        (FACE_CROPS, random.randbytes(random.randrange(200)), headers()),
        (FACE_CROPS, encode(crop), old),
        (FACE_CROPS, encode(FaceCrop(**common, sequence=1, captured_at=now, quality=0.9, jpeg=truncated)), headers()),
        (FACE_CROPS, encode(FaceCrop(**common, sequence=2, captured_at=now, quality=0.9, jpeg=huge)), headers()),
        (FACE_CROPS, b"", ()),
        (PREDICTIONS, flipped, headers(end)),
        (PREDICTIONS, end, new),
        (PREDICTIONS, encode(ahead), headers()),
        (PREDICTIONS, encode(crop), headers()),
        (PREDICTIONS, random.randbytes(100_000), headers()),
    ]
    bus = KafkaBus(kafka.bootstrap_servers, timeout_s=3, delivery_timeout_s=20)
    try:
        producer = bus.producer(send_timeout_s=2)
        for topic, value, said in bad:
            key = random.choice((camera.encode(), random.randbytes(300), b""))
            producer.send(topic, key=key, value=value, headers=((POISON_HEADER, b"1"), *said))
        producer.flush(5)
    finally:
        bus.close()


class Recount:
    """What lies in the topics in the end, read by nobody's code but this."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.cells: Counter[Cell] = Counter()
        self.duplicates = 0
        self.predictions = 0
        self.letters: Counter[str] = Counter()  # by reason, each record once
        self.letters_twice = 0
        self.poisoned = 0
        bus = KafkaBus(bootstrap_servers)
        self._predictions(read_all(bus, PREDICTIONS))
        for record in read_all(bus, FACE_CROPS):
            self.poisoned += is_poison(record)
        seen: set[tuple[str, int, int]] = set()
        for record in read_all(bus, DEAD_LETTERS):
            letter = decode(record.value, record.headers)
            assert isinstance(letter, DeadLetter)
            where = (letter.topic, letter.partition, letter.offset)
            self.letters_twice += where in seen
            if where not in seen:
                self.letters[letter.reason] += 1
            seen.add(where)
        bus.close()

    def _predictions(self, records: Iterator[Record]) -> None:
        looks: dict[tuple[str, int], dict[int, tuple[Look, tuple[float, ...]]]] = {}
        ended: set[tuple[str, int]] = set()
        for record in records:
            self.poisoned += is_poison(record)
            try:
                message = decode(record.value, record.headers)
            except InvalidMessage:
                continue
            if is_poison(record) or isinstance(message, CameraStatus):
                continue
            assert isinstance(message, (Prediction, TrackEnded))
            track = (message.camera_id, message.track_id)
            said = looks.setdefault(track, {})
            if isinstance(message, TrackEnded):
                self.duplicates += track in ended
                ended.add(track)
            elif message.sequence in said:
                self.duplicates += 1
            else:
                self.predictions += 1
                look = Look(message.age or 0.0, message.p_female or 0.0, 0, message.quality)
                said[message.sequence] = (look, message.p_ethnicity or ())
        for track, said in looks.items():
            ethnicity = [p for _, p in said.values()]
            self.cells[(track[0], *label([look for look, _ in said.values()], ethnicity))] += 1


def read_all(bus: KafkaBus, topic: str) -> Iterator[Record]:
    """Read a topic from its beginning to its end."""
    reader = bus.reader(topic)
    for partition, span in reader.spans().items():
        yield from reader.read(partition, span.begin, span.end)
    reader.close()


def is_poison(record: Record) -> bool:
    """Tell whether this run has put it there to do harm."""
    return any(name == POISON_HEADER for name, _ in record.headers)


Parts = tuple[Counter[tuple[str, ...]], Counter[tuple[str, ...]]]


def parted(counted: Counter[Cell]) -> Parts:
    """Give people and ethnicities apart, as the store keeps them."""
    people: Counter[tuple[str, ...]] = Counter()
    ethnicity: Counter[tuple[str, ...]] = Counter()
    for (camera, gender, band, origin), n in counted.items():
        people[(camera, gender, band)] += n
        ethnicity[(camera, origin)] += n
    return people, ethnicity


def stored(tallies: Any) -> Parts:
    """Give what the store shows."""
    return (
        Counter({(place.camera_id, *cell): n for place, tally in tallies.items() for cell, n in tally.people.items()}),
        Counter(
            {(place.camera_id, label): n for place, tally in tallies.items() for label, n in tally.ethnicity.items()}
        ),
    )


def difference(one: Parts, other: Parts) -> int:
    """Sum over all cells by how much they differ."""
    return sum(
        abs(mine[cell] - theirs[cell])
        for mine, theirs in zip(one, other, strict=True)
        for cell in mine.keys() | theirs.keys()
    )


def scraped(service: Service) -> Counter[tuple[str, ...]]:
    """Read the totals from a service's /metrics, as Prometheus does."""
    with urllib.request.urlopen(service.url() + "/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        if line.startswith("demographics_visitors_total{"):
            labels = dict(item.split("=") for item in line[line.index("{") + 1 : line.index("}")].split(","))
            found[tuple(labels[name].strip('"') for name in ("camera", "gender", "age_band"))] = int(
                float(line.split()[-1])
            )
    return found


def command(deployment: Deployment, *arguments: str) -> Any:
    """Run a command of the product, as an operator would, and read what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env=deployment.environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if not done.stdout:
        raise RuntimeError(f"demographics {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def applied_everything(deployment: Deployment, store: RedisStore, bus: KafkaBus, people: int) -> bool:
    """Tell whether all that was said has been predicted, and all that was predicted is in the counts."""
    with suppress(TransportError):
        reader = bus.reader(PREDICTIONS)
        spans = reader.spans()
        reader.close()
        positions = store.positions([tp.partition for tp in spans])
        behind = [
            tp
            for tp, span in spans.items()
            if span.end != (position.offset if (position := positions[tp.partition]) else 0)
        ]
        total = sum(tally.people.total() for tally in store.snapshot(time.time(), WINDOWS).totals.values())
        lag = sum(consumer_lag(one) for name, one in deployment.members.items() if name.startswith("inference"))
        return not behind and not lag and total >= people
    return False


def consumer_lag(service: Service) -> float:
    """Ask a service how much it has still to read."""
    with suppress(OSError, IndexError):
        lines = service.text("/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("demographics_consumer_lag{"))
    return 1.0


WINDOWS: Final = rolling_windows({"24h": 86400})


def say(text: str) -> None:
    """Tell whoever watches."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run it, and give what came of it."""
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer(folder / "kafka"))
        valkey = stack.enter_context(EverySecond(folder / "valkey", append_only=True))
        deployment = Deployment(arguments, folder, kafka, valkey)
        stack.callback(deployment.stop)
        for member in deployment.commands:
            deployment.start(member)
        deployment.wait_ready()
        chaos = Chaos(deployment)
        say(
            f"{deployment.people * len(CAMERAS)} people will pass {len(CAMERAS)} cameras within {arguments.seconds:.0f} s"
        )
        chaos.run(arguments.kills, arguments.seconds)
        say("all is done; waiting for what is under way")
        sources = [one for name, one in deployment.members.items() if name.startswith("ingest")]
        wait_until(
            lambda: all(one.process.poll() == 0 for one in sources), timeout_s=SETTLE_S, what="the end of the script"
        )
        bus = KafkaBus(kafka.bootstrap_servers)
        stack.callback(bus.close)
        store = RedisStore(valkey.url, retentions(WINDOWS))
        stack.callback(store.close)
        people = deployment.people * len(CAMERAS)
        done = True
        try:
            wait_until(
                lambda: applied_everything(deployment, store, bus, people), timeout_s=SETTLE_S, what="the counts"
            )
        except TimeoutError as error:
            say(str(error))
            done = False
        recount = Recount(kafka.bootstrap_servers)
        shown = store.snapshot(time.time(), WINDOWS)
        totals, day = stored(shown.totals), stored(shown.windows["24h"])
        script = parted(cells(CAMERAS, arguments.seed, deployment.people, arguments.interval))
        exported = scraped(deployment.members["aggregator-0"])
        replayed = command(deployment, "replay", "--verify", "--json")
        listed = command(deployment, "deadletters", "list", "--json")
        differences = {
            "totals_to_script": difference(totals, script),
            "totals_to_recount": difference(totals, parted(recount.cells)),
            "day_to_script": difference(day, script),
            "metrics_to_script": difference((exported, Counter()), (script[0], Counter())),
            "replay_to_live": replayed["difference"] if replayed["complete"] else people,
            "dead_letters_to_poison": abs(recount.letters.total() - recount.poisoned),
            "dead_letters_listed": abs(len(listed) - recount.letters.total()),
        }
        crashed = [one.name for one in deployment.all if "Traceback" in one.said()]
        assigned = [
            event for one in deployment.all for event in one.events("partitions_assigned") if event["partitions"]
        ]
        return {
            "kills": dict(sorted(chaos.kills.items())),
            "kills_total": chaos.kills.total(),
            "seconds": round(time.time() - deployment.started),
            "seed": arguments.seed,
            "people": people,
            "predictions": recount.predictions,
            "rebalances": len(assigned),
            "duplicates_suppressed": recount.duplicates,
            "dead_letters": dict(sorted(recount.letters.items())),
            "dead_letters_said_twice": recount.letters_twice,
            "store_read_again": sum(
                len(one.events(event))
                for one in deployment.all
                for event in ("partition_applied_elsewhere", "store_is_elsewhere")
            ),
            "cells_replayed": replayed["cells"],
            "unfinished": not done,
            "tracebacks": crashed,
            "differences": differences,
            "difference": sum(differences.values()),
        }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--kills", type=int, default=10, help="how many things go wrong")
    parser.add_argument("--seconds", type=float, default=0, help="within how long; 0: 24 s for each")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two people before one camera")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another run of the same script")
    parser.add_argument("--only", action="append", choices=WEIGHTS, metavar="KIND", help="only these kinds; repeatable")
    parser.add_argument("--keep", type=Path, default=None, help="folder for logs and data, kept")
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or 24.0 * arguments.kills
    if missing := KafkaServer.missing():
        sys.exit(f"this needs a real Apache Kafka, but there is {missing}")
    assert ROOT.is_dir()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(arguments, folder)
    print(json.dumps(result), flush=True)
    return 0 if not result["difference"] and not result["unfinished"] and not result["tracebacks"] else 1


if __name__ == "__main__":
    sys.exit(main())
