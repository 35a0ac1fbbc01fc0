"""From the frame to the count, stage by stage: three services of their own, a real broker, cameras by RTSP.

The percentiles are read from the histograms that every deployment has. The broker must be nobody else's: the services make
and use their own topics there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from kafka import KafkaAdminClient

from demo.rtsp_server import RtspServer
from pipeline import telemetry as metrics
from pipeline.bench import films, histograms
from pipeline.bench.rows import Row, Workbench
from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.errors import ConfigError

PART: Final = "latency"
CAMERAS: Final = 3
LOOKS_A_SECOND: Final = 5
WARM_UP_S: Final = 15.0
MEASURED_S: Final = 40.0
START_S: Final = 180.0
STAGES: Final = (
    ("the frame to Kafka: waiting, detection, the best crop of its time", metrics.CAPTURE_TO_BUS),
    ("Kafka to the prediction: waiting, JPEG, the network", metrics.BUS_TO_PREDICTION),
    ("Kafka to the count in Valkey", metrics.BUS_TO_COUNT),
    ("the frame to the count", metrics.CAPTURE_TO_COUNT),
)


def measure(bench: Workbench) -> list[Row]:
    """Measure a normal load: some cameras, people all the time, room on every core. Nothing where there is no broker."""
    if not bench.kafka:
        return []
    _must_be_ours(bench.kafka)
    film = films.people(bench.folder, size=(1280, 720), seconds=30, walkers=12)
    with ExitStack() as stack:
        valkey = stack.enter_context(EmbeddedValkey())
        server = stack.enter_context(RtspServer())
        for number in range(CAMERAS):
            server.add(f"camera-{number}", film, start="on_play")
        listed = bench.folder / "cameras.json"  # which is YAML, too
        listed.write_text(
            json.dumps(
                {
                    "cameras": [
                        {"id": f"camera-{n}", "url": server.url(f"camera-{n}"), "detect_fps": LOOKS_A_SECOND}
                        for n in range(CAMERAS)
                    ]
                }
            )
        )
        environment = {
            **os.environ,
            "DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS": bench.kafka,
            "DEMOGRAPHICS_REDIS__URL": valkey.url,
            "DEMOGRAPHICS_HTTP__PORT": "0",
        }
        services = [
            stack.enter_context(_service(bench.folder, environment, *arguments))
            for arguments in (("aggregate",), ("infer",), ("ingest", str(listed)))
        ]
        bench.progress(f"{PART}: waiting for the services")
        addresses = [_ready(service, log) for service, log in services]
        time.sleep(WARM_UP_S)
        before = [_metrics(address) for address in addresses]
        bench.progress(f"{PART}: {CAMERAS} cameras for {MEASURED_S:g} s")
        time.sleep(MEASURED_S)
        after = [_metrics(address) for address in addresses]
    rows = []
    for what, metric in STAGES:
        seen = histograms.since(histograms.of_texts(after, metric), histograms.of_texts(before, metric))
        crops = max(seen.values(), default=0.0)
        rows += [
            Row(
                PART, f"{what}: {name}", histograms.quantile(share, seen), "s",
                limit_of=f"{crops:,.0f} observed, {CAMERAS} cameras of 720p25 at {LOOKS_A_SECOND} looks/s",
            )
            for name, share in (("p50", 0.5), ("p99", 0.99))
        ]  # fmt: skip
    return rows


def _must_be_ours(servers: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        there = {FACE_CROPS, PREDICTIONS} & set(admin.list_topics())
    finally:
        admin.close()
    if there:
        raise ConfigError(
            f"--kafka {servers}: it has the topics {' and '.join(sorted(there))}; what is measured would be counted there. "
            "Name a broker that nobody else uses"
        )


@contextmanager
def _service(
    folder: Path, environment: dict[str, str], *arguments: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = folder / f"{arguments[0]}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", "pipeline.cli", *arguments], env=environment, stdout=stream, stderr=stream
        )
        try:
            yield process, log
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a service does its work; gives its address. Raises ConfigError with its last words."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        said = [
            json.loads(line)
            for line in log.read_text(errors="replace").splitlines()
            if line.startswith("{") and "}" in line
        ]
        if any(one.get("event") == "service_ready" for one in said):
            return str(next(one["address"] for one in said if one.get("event") == "service_starting"))
        time.sleep(0.2)
    raise ConfigError(f"a service did not start; its last words: {log.read_text(errors='replace')[-500:]}")


def _metrics(address: str) -> str:
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:  # noqa: S310  our own service
        return str(answer.read().decode())
