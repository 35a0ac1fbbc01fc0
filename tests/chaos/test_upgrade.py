"""A rolling upgrade, and back: the version before and this one side by side on the same topics and the same store.

The version before is a commit of this repository, laid beside it by `git archive` and run by the same interpreter with the same
libraries. A checkout without history has none: the test is skipped there, and what remains are the golden bytes of every schema
version (tests/golden), which must decode for ever.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from aggregator.redis_store import RedisStore
from aggregator.windows import retentions
from pipeline.kafka_bus import KafkaBus
from tests.chaos.__main__ import WINDOWS, Recount, difference, parted, stored
from tests.chaos.script import Cell, cells
from tests.e2e.conftest import ROOT, Service, clean_environment, until
from tests.servers import KafkaServer, ValkeyServer

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(400)]

BEFORE: Final = "d0f87de6f5e7a55194ceb48f452042f2986bad7b"
"""The version that is upgraded from; at a release, the release before."""
PARTS: Final = (
    "aggregator",
    "demo",
    "inference",
    "ingest",
    "models/default/manifest.json",
    "pipeline",
    "tests",
    "training",
)
CAMERAS: Final = tuple(f"camera-{n:02}" for n in range(12))
PEOPLE: Final = 4  # in one wave, before each camera
INTERVAL_S: Final = 1.0


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the version before down."""
    made = subprocess.run(["git", "archive", BEFORE, *PARTS], cwd=ROOT, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"this checkout has no commit {BEFORE[:7]}: fetch the history (git fetch --unshallow)")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    found = subprocess.run(
        [sys.executable, "-c", "import pipeline; print(pipeline.__file__)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(folder), "this version's code would run instead"
    return folder


class Roll:
    """The services of both versions; each is started, and told to end as Kubernetes does."""

    def __init__(self, folder: Path, before: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._versions = {"old": before, "new": ROOT}
        self._environment = environment
        self.waves: list[list[str]] = []
        self.all: dict[str, Service] = {}

    def start(self, name: str) -> None:
        """Start VERSION-SERVICE-N, and wait until it does its work."""
        service = name.split("-")[1]
        command = {"inference": ["tests.chaos.infer", "0.02"], "aggregator": ["pipeline.cli", "aggregate"]}[service]
        self._run(name, command)

    def wave(self, version: str) -> str:
        """Have ingest of a version send another wave of people; gives its name, and does not wait for its end."""
        number = len(self.waves)
        folder = self._folder / f"wave-{number}"
        folder.mkdir()
        self.waves.append([*map(str, (number, int(time.time()) + 1, PEOPLE, INTERVAL_S, folder)), *CAMERAS])
        return self.go_on(version)

    def go_on(self, version: str) -> str:
        """Have ingest of a version go on with the wave, from where the one before has stopped."""
        name = f"{version}-ingest-{len(self.all)}"
        self._run(name, ["tests.chaos.source", *self.waves[-1]])
        return name

    def end(self, name: str) -> None:
        """End one in good order."""
        assert self.all[name].stop() == 0, self.all[name].said()[-2000:]

    def over(self, name: str) -> None:
        """Wait until a wave has been said."""
        until(lambda: self.all[name].process.poll() == 0, 120, self.all[name].said)

    def shared(self, *names: str) -> None:
        """Wait until each has its share of the partitions."""
        until(
            lambda: all("demographics_consumer_lag{" in self.all[name].text("/metrics") for name in names),
            60,
            lambda: f"{names} do not share the partitions",
        )

    def has_worked(self, name: str) -> bool:
        """Tell whether it has handled records."""
        lines = self.all[name].text("/metrics").splitlines()
        return any(float(line.split()[-1]) > 0 for line in lines if line.startswith("demographics_records_total{"))

    def expected(self) -> Counter[Cell]:
        """Say what everybody of all waves must be counted as."""
        whole: Counter[Cell] = Counter()
        for seed in range(len(self.waves)):
            whole += cells(CAMERAS, seed, PEOPLE, INTERVAL_S)
        return whole

    def _run(self, name: str, command: list[str]) -> None:
        log, folder = self._folder / f"{name}.log", self._versions[name.split("-", maxsplit=1)[0]]
        self.all[name] = made = Service(name, (), self._environment, log, command=command, folder=folder)
        until(lambda: bool(made.events("service_ready")), 90, made.said)


@pytest.fixture
def roll(tmp_path: Path, before: Path, kafka_server: KafkaServer) -> Iterator[tuple[Roll, KafkaServer, ValkeyServer]]:
    """Give a broker and a store of its own, and the way to start both versions on them; whatever is left is ended."""
    with (
        KafkaServer(tmp_path / "kafka") as kafka,
        ValkeyServer(tmp_path / "valkey", append_only=True) as valkey,
    ):
        environment = clean_environment(
            DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
            DEMOGRAPHICS_KAFKA__PARTITIONS="6",
            DEMOGRAPHICS_KAFKA__SESSION_TIMEOUT_S="6",
            DEMOGRAPHICS_REDIS__URL=valkey.url,
            DEMOGRAPHICS_INFERENCE__MAX_BATCH="4",
        )
        made = Roll(tmp_path, before, environment)
        yield made, kafka, valkey
        for service in made.all.values():
            service.stop()


def test_versions_side_by_side_count_everybody_once(roll: tuple[Roll, KafkaServer, ValkeyServer]) -> None:
    """Up, service by service, each beside its successor for a while; then inference and aggregator back again."""
    services, kafka, valkey = roll
    for name in ("old-aggregator-0", "old-inference-0"):
        services.start(name)

    wave = services.wave("old")  # while people pass
    for part in ("inference", "aggregator"):
        services.start(f"new-{part}-0")
        services.shared(f"old-{part}-0", f"new-{part}-0")
    services.over(wave)
    services.over(services.wave("old"))  # side by side
    until(lambda: services.has_worked("new-inference-0") and services.has_worked("new-aggregator-0"), 30)
    wave = services.wave("old")
    for part in ("inference", "aggregator"):
        services.end(f"old-{part}-0")
    services.over(wave)

    wave = services.wave("old")
    services.end(wave)
    services.over(services.go_on("new"))

    wave = services.wave("new")  # and back, with what the new ones have written
    for part in ("inference", "aggregator"):
        services.start(f"old-{part}-1")
        services.shared(f"new-{part}-0", f"old-{part}-1")
    services.over(wave)
    services.over(services.wave("new"))
    until(lambda: services.has_worked("old-inference-1") and services.has_worked("old-aggregator-1"), 30)
    wave = services.wave("new")
    for part in ("inference", "aggregator"):
        services.end(f"new-{part}-0")
    services.over(wave)

    store = RedisStore(valkey.url, retentions(WINDOWS))
    bus = KafkaBus(kafka.bootstrap_servers)
    script = parted(services.expected())
    until(
        lambda: difference(stored(store.snapshot(time.time(), WINDOWS).totals), script) == 0,
        90,
        lambda: "counts differ",
    )
    recount = Recount(kafka.bootstrap_servers)
    shown = store.snapshot(time.time(), WINDOWS)
    assert difference(stored(shown.windows["24h"]), script) == 0
    assert difference(parted(recount.cells), script) == 0
    assert not recount.letters
    bus.close()
    store.close()
    assert not [name for name, service in services.all.items() if "Traceback" in service.said()]
