"""Debian's real Prometheus with the product's own rules, scraping every second; and what the dashboards ask of it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import yaml

from deploy.grafana.dashboards import FOLDER
from tests.servers import _LOOPBACK, _Server, free_port

DEPLOY: Final = Path(__file__).resolve().parents[1] / "deploy"
CONFIGURATION: Final = DEPLOY / "prometheus" / "prometheus.yml"
FILLED: Final = {
    "$window": "15m", "$site": ".*", "$camera": ".*", "$utc_offset": "0", "$__range": "1h", "$__rate_interval": "30s",
}  # fmt: skip


def tool(name: str) -> str:
    """Find one of Prometheus' programs; skips the test where there is none."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"no {name} on the PATH; Debian's package prometheus brings it")
    return found


def promtool(*arguments: str) -> str:
    """Run Prometheus' tool; gives what it says."""
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class PrometheusServer(_Server):
    """Scrapes *targets* ("host:port" by job) every second, and evaluates the rules as often."""

    def __init__(
        self, targets: Mapping[str, Sequence[str]], directory: Path | None = None, *, history: str = ""
    ) -> None:
        """Set up; *history* is what it has recorded already, as OpenMetrics text."""
        super().__init__(directory)
        self._targets = targets
        self._history = history
        self.url = f"http://{_LOOPBACK}:{free_port()}"

    def start(self) -> PrometheusServer:
        """Start it; takes a second."""
        binary, data = tool("prometheus"), self.directory / "data"
        rules = self.directory / "rules"
        rules.mkdir(exist_ok=True)
        for path in (CONFIGURATION.parent / "rules").glob("*.yml"):
            groups = yaml.safe_load(path.read_text())
            for group in groups["groups"]:
                group.pop("interval", None)  # a test does not wait for a minute
            (rules / path.name).write_text(yaml.safe_dump(groups))
        configuration = yaml.safe_load(CONFIGURATION.read_text())
        configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        del configuration["alerting"]
        configuration["scrape_configs"] = [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
            for job, addresses in self._targets.items()
        ]
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        if self._history:
            written = self.directory / "history.om"
            written.write_text(self._history)
            promtool("tsdb", "create-blocks-from", "openmetrics", str(written), str(data))
        self._launch(
            [
                binary, f"--config.file={self.directory / 'prometheus.yml'}", f"--storage.tsdb.path={data}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            self._answers,
            timeout_s=30,
        )  # fmt: skip
        return self

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/-/ready", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Ask for an instant vector."""
        document = httpx2.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=20).json()
        assert document.get("status") == "success", document
        result = document["data"]["result"]
        assert isinstance(result, list)
        return result

    def value(self, expression: str) -> float:
        """Ask for one number; not a number where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else math.nan

    def firing(self) -> set[str]:
        """Name the alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}


def has_data(server: PrometheusServer, expression: str) -> bool:
    """Tell whether a panel would show anything."""
    return any(sample["value"][1] != "NaN" for sample in server.query(expression))


def week_before(site: str, camera: str, *, now: float | None = None, most_an_hour: int = 40) -> str:
    """Make up what was recorded of a camera in the eight days before, as OpenMetrics: quiet at night, busy at noon."""
    end = int((now or time.time()) // 240 * 240)
    start, counted = end - 8 * 86400, 0.0
    lines = ["# TYPE demographics:visitors_total:by_camera gauge"]
    for at in range(start, end, 240):
        hour, weekday = at % 86400 / 3600, (at // 86400 + 3) % 7
        open_now = max(0.0, math.sin((hour - 8) / 12 * math.pi)) * (0.2 if weekday == 6 else 1)
        counted += most_an_hour / 15 * open_now
        lines.append(f'demographics:visitors_total:by_camera{{site="{site}",camera="{camera}"}} {int(counted)} {at}')
    return "\n".join([*lines, "# EOF\n"])


# --- the dashboards --------------------------------------------------------------------------------------------------------


def dashboards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the dashboards as Grafana does."""
    for path in sorted(FOLDER.glob("*.json")):
        yield path.stem, json.loads(path.read_text())


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """List every panel that asks something, by a name that a failure can show."""
    for name, document in dashboards():
        for panel in document["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def expressions() -> list[tuple[str, str]]:
    """List every query, with the variables filled in."""
    found = []
    for name, panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in FILLED.items():
                expression = expression.replace(variable, value)
            if "$" in expression.replace("0$1", ""):  # of label_replace
                raise AssertionError(f"{name}: a variable that the test does not know: {expression}")
            found.append((f"{name} ({target['refId']})", expression))
    return found
