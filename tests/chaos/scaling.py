"""From one inference worker to three, on an engine with a fixed delay: `python -m tests.chaos.scaling`.

A backlog of face crops lies in a real Kafka; workers are added one by one, then one is killed. The log's own time stamps say how
many predictions a second there were, and the log itself what was predicted twice. The last line on stdout is one JSON object.
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

from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.kafka_bus import KafkaBus
from pipeline.messages import FaceCrop, Prediction, decode, encode, headers
from pipeline.settings import Settings
from tests.chaos.script import picture
from tests.e2e.conftest import Service, clean_environment
from tests.servers import KafkaServer, wait_until

BATCH: Final = 8
SETTLE_S: Final = 8.0  # a rebalance, and what had been fetched before it


def run(workers: int, seconds: float, delay_s: float, folder: Path) -> dict[str, Any]:
    """Measure, and give the figures."""
    steps: list[tuple[str, float, float]] = []  # what was done, and the span of time that is measured after it
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer(folder / "kafka"))
        bus = KafkaBus(kafka.bootstrap_servers)
        stack.callback(bus.close)
        bus.ensure_topics(Settings().kafka.topics())
        most = int(BATCH / delay_s * (seconds + SETTLE_S) * (workers + 1) * workers)
        fill(bus, most)
        environment = clean_environment(
            DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
            DEMOGRAPHICS_KAFKA__SESSION_TIMEOUT_S="6",
            DEMOGRAPHICS_INFERENCE__MAX_BATCH=str(BATCH),
            DEMOGRAPHICS_INFERENCE__DECODERS="1",
        )
        started: list[Service] = []
        for number in range(1, workers + 1):
            one = Service(
                f"inference-{number}", (), environment, folder / f"{number}.log",
                command=("tests.chaos.infer", str(delay_s)),
            )  # fmt: skip
            stack.callback(one.stop)
            started.append(one)
            wait_until(lambda one=one: bool(one.events("service_ready")), timeout_s=120, what="the worker")  # type: ignore[misc]
            steps.append(measured(f"{number} workers", seconds))
        started[0].kill()
        steps.append(measured(f"{workers - 1} workers, after one was killed", seconds))
        ends = {tp: span.end for tp, span in bus.reader(FACE_CROPS).spans().items()}
        rates, twice = count(bus, steps)
    return {
        "crops": sum(ends.values()), "batch": BATCH, "delay_s": delay_s,
        "predictions_per_s": rates, "predicted_twice": twice,
        "linear": round(rates[steps[workers - 1][0]] / (workers * rates[steps[0][0]]), 3),
    }  # fmt: skip


def fill(bus: KafkaBus, count: int) -> None:
    """Put a backlog there, the same for every camera."""
    producer = bus.producer(max_in_flight=5000)
    now = time.time()
    for n in range(count):
        camera = f"camera-{n % 60:02}"
        crop = FaceCrop(
            camera_id=camera, track_id=n // 60 // 8, sequence=n // 60 % 8, first_seen=now, captured_at=now, quality=0.9,
            jpeg=picture(30, n % 4, n % 5),
        )  # fmt: skip
        producer.send(FACE_CROPS, key=camera.encode(), value=encode(crop), headers=headers())
    producer.flush(120)
    producer.close()


def measured(what: str, seconds: float) -> tuple[str, float, float]:
    """Let the group settle and work for a while."""
    time.sleep(SETTLE_S)
    begin = time.time()
    time.sleep(seconds)
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    return what, begin, begin + seconds


def count(bus: KafkaBus, steps: list[tuple[str, float, float]]) -> tuple[dict[str, float], dict[str, int]]:
    """Count the predictions of each span by the log's own time, and those that were there already."""
    rates, twice = dict.fromkeys((what for what, _, _ in steps), 0.0), dict.fromkeys((what for what, _, _ in steps), 0)
    reader = bus.reader(PREDICTIONS)
    for tp, span in reader.spans().items():
        seen: set[tuple[str, int, int]] = set()
        for record in reader.read(tp, *span):
            message = decode(record.value, record.headers)
            assert isinstance(message, Prediction)
            identity = (message.camera_id, message.track_id, message.sequence)
            for what, begin, end in steps:
                if identity in seen and record.timestamp <= end:
                    twice[what] += 1
                    break
                if begin <= record.timestamp < end:
                    rates[what] += 1 / (end - begin)
                    break
            seen.add(identity)
    reader.close()
    return {what: round(rate, 1) for what, rate in rates.items()}, twice


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.scaling", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured at each number of workers")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds of the engine for one batch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        sys.stdout.write(json.dumps(run(arguments.workers, arguments.seconds, arguments.delay, Path(folder))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
