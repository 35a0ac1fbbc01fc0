"""Run a command that takes `--kafka HOST:PORT` beside a real broker of its own; without, where there is no Java or Maven.

python -m tests.with_kafka .venv/bin/demographics bench --only bus
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from tests.servers import KafkaServer


def main(command: Sequence[str]) -> int:
    """Run *command* and give its exit status."""
    if missing := KafkaServer.missing():
        sys.stderr.write(f"without Kafka: {missing}\n")
        return subprocess.run(command, check=False).returncode
    with KafkaServer() as kafka:
        return subprocess.run([*command, "--kafka", kafka.bootstrap_servers], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
