"""Kafka is down for minutes: `python -m tests.chaos.outage --minutes 3`.

A real ingest worker on an RTSP camera, a scripted engine, an aggregator. While the broker is dead, memory and frames are watched;
once it is back, everybody has to go on, and every track that ingest has closed has to be a visitor. The last line on stdout is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from demo.composer import compose, load_cast
from demo.rtsp_server import RtspServer
from tests.e2e.conftest import Service, clean_environment
from tests.servers import KafkaServer, ValkeyServer, wait_until

RESUME_S: Final = 120.0


def value(service: Service, *names: str) -> float:
    """Sum the samples of metrics whose lines begin with one of *names*."""
    lines = service.text("/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def resident_mib(service: Service) -> float:
    """Read a process's memory."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def visitors(aggregator: Service) -> int:
    """Read how many have been counted, ever."""
    return int(aggregator.get("/api/v1/windows")["total"]["visitors"])


def run(minutes: float, folder: Path) -> dict[str, Any]:
    """Run it, and give what was seen."""
    clip = compose(folder / "hall.mp4", load_cast(), view="hall", people=6, seconds=20, seed=5)
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer(folder / "kafka"))
        valkey = stack.enter_context(ValkeyServer(folder / "valkey", append_only=True))
        cameras = stack.enter_context(RtspServer())
        cameras.add("hall", clip.path)
        environment = clean_environment(
            DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers, DEMOGRAPHICS_REDIS__URL=valkey.url
        )
        listed = folder / "cameras.yaml"
        listed.write_text(f"cameras:\n  - {{id: hall, url: '{cameras.url('hall')}'}}\n")
        commands = {
            "aggregator": ("pipeline.cli", "aggregate"),
            "inference": ("tests.chaos.infer", "0.02", "default"),
            "ingest": ("pipeline.cli", "ingest", str(listed)),
        }
        services: dict[str, Service] = {}
        for name, command in commands.items():
            services[name] = Service(name, (), environment, folder / f"{name}.log", command=command)
            stack.callback(services[name].stop)
            wait_until(
                lambda name=name: bool(services[name].events("service_ready")), timeout_s=180, what=name  # type: ignore[misc]
            )  # fmt: skip
        wait_until(lambda: visitors(services["aggregator"]) >= 6, timeout_s=180, what="the first visitors")
        ingest = services["ingest"]
        frames, since = value(ingest, "demographics_frames_total"), time.monotonic()
        before = {name: resident_mib(one) for name, one in services.items()}
        counted_before = visitors(services["aggregator"])
        kafka.kill()
        most = dict(before)
        while time.monotonic() - since < minutes * 60:
            time.sleep(5)
            most = {name: max(most[name], resident_mib(one)) for name, one in services.items()}
        fps = (value(ingest, "demographics_frames_total") - frames) / (time.monotonic() - since)
        dropped = value(ingest, 'demographics_drops_total{camera="hall",reason="bus"')
        kafka.start()
        back = time.monotonic()
        wait_until(
            lambda: visitors(services["aggregator"]) > counted_before, timeout_s=RESUME_S, what="the next visitor"
        )
        resumed_s = time.monotonic() - back
        time.sleep(20)
        most = {name: max(most[name], resident_mib(one)) for name, one in services.items()}
        status = ingest.stop(60)
        tracks = sum(int(n) for event in ingest.events("cameras_ended") for n in event["tracks"].values())
        wait_until(lambda: visitors(services["aggregator"]) >= tracks, timeout_s=RESUME_S, what="every visitor")
        return {
            "down_s": round(minutes * 60), "fps_meanwhile": round(fps, 1), "crops_dropped": int(dropped),
            "resident_mib_before": {name: round(mib) for name, mib in before.items()},
            "resident_mib_most": {name: round(mib) for name, mib in most.items()},
            "next_visitor_after_s": round(resumed_s, 1), "tracks": tracks, "visitors": visitors(services["aggregator"]),
            "exit_status": status, "tracebacks": [name for name, one in services.items() if "Traceback" in one.said()],
        }  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.outage", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outage-") as folder:
        result = run(arguments.minutes, Path(folder))
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["tracks"] == result["visitors"] and not result["tracebacks"] else 1


if __name__ == "__main__":
    sys.exit(main())
