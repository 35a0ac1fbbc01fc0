"""The alerts: each is shown to fire and not to fire, says how bad it is, and leads to a page of the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.prometheus import promtool

ROOT: Final = Path(__file__).resolve().parents[2]
RULES: Final = ROOT / "deploy" / "prometheus" / "rules"
CASES: Final = ROOT / "deploy" / "prometheus" / "tests" / "alerts.yml"


def alerts() -> list[dict[str, Any]]:
    """List every alert."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_each_alert_fires_where_it_has_to_and_only_there() -> None:
    """As Prometheus evaluates them, on made-up courses of the metrics."""
    assert "SUCCESS" in promtool("test", "rules", str(CASES))


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_each_alert_has_a_case_a_severity_and_a_page_in_the_runbook(alert: dict[str, Any]) -> None:
    """A new alert without them would wake somebody up who then does not know what to do."""
    name = alert["alert"]
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description", "runbook"} == alert["annotations"].keys()
    page, anchor = alert["annotations"]["runbook"].split("#")
    runbook = (ROOT / page).read_text()
    assert anchor == name.lower()
    section = re.search(rf"^## {name}\n\n\*(\w+)", runbook, flags=re.MULTILINE)
    assert section, f"{page} says nothing of {name}"
    assert section[1].lower() == alert["labels"]["severity"]
    asked = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["promql_expr_test"]]
    assert any(name in case["expr"] and case["exp_samples"] for case in asked), f"{name} is never shown to fire"


def test_the_runbook_speaks_of_no_alert_that_there_is_not() -> None:
    """A page for a renamed alert is never found."""
    sections = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), flags=re.MULTILINE))
    assert sections == {alert["alert"] for alert in alerts()}


def test_alertmanager_reads_its_configuration_and_speaks_of_alerts_that_there_are() -> None:
    """An inhibition of a renamed alert would hold nothing back."""
    path = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    document = yaml.safe_load(path.read_text())
    names = {alert["alert"] for alert in alerts()}
    matchers = [m for rule in document["inhibit_rules"] for m in (*rule["source_matchers"], *rule["target_matchers"])]
    spoken = {name for m in matchers if "alertname" in m for name in re.findall(r"[A-Z][A-Za-z]+", m)}
    assert spoken
    assert spoken <= names
    receivers = {receiver["name"] for receiver in document["receivers"]}
    assert {document["route"]["receiver"], *(route["receiver"] for route in document["route"]["routes"])} <= receivers
    if tool := shutil.which("amtool"):
        done = subprocess.run([tool, "check-config", str(path)], capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
