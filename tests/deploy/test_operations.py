"""docs/operations.md: its commands are ones that there are, with options and services that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.findings import PARTS
from pipeline.kafka_bus import _creation
from pipeline.settings import KafkaSettings
from tests.deploy.compose import COMPOSE, ROOT
from tests.deploy.tools import tool

PAGE: Final = ROOT / "docs" / "operations.md"
CHART: Final = ROOT / "deploy" / "kubernetes" / "demographics"


def commands(first: str) -> Iterator[list[str]]:
    """List the commands of the page that begin with a word, without their comments; a product's within prose, too."""
    text = PAGE.read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")] + re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        words = shlex.split(line, comments=True)
        for part in " ".join(shlex.quote(word) for word in words).split(" '&&' "):
            words = shlex.split(part)
            if words and words[0] == first and len(words) > 1:
                yield words


def parse(words: list[str]) -> None:
    """Have the command line take a command apart, and not run it."""
    command: Any = typer.main.get_command(app)
    rest = words[: words.index(">")] if ">" in words else list(words)
    name = "demographics"
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    context = command.make_context(name, rest)
    only = context.params.get("only") or []
    if name == "doctor":
        assert set(only) <= set(PARTS)


def test_the_products_commands_are_ones_that_it_has() -> None:
    """Each is taken apart by the command line itself."""
    found = list(commands("demographics"))
    assert len(found) > 15
    for words in found:
        parse(words[1:])
    with pytest.raises(Exception, match="No such option"):
        parse(["doctor", "--opne"])


def test_compose_has_the_services_and_volumes_that_the_page_names() -> None:
    """`run`, `exec`, `up`, `stop`, `start` and `logs` of services, and what doctor is given within them."""
    compose = yaml.safe_load(COMPOSE.read_text())
    found = list(commands("docker"))
    assert len(found) > 12
    for words in found:
        if words[1] == "run":
            volume = words[words.index("-v") + 1].partition(":")[0]
            assert volume.removeprefix("demographics_") in compose["volumes"], words
            continue
        assert words[1] == "compose"
        verb, rest = words[2], words[3:]
        assert verb in {"config", "up", "run", "stop", "start", "build", "down", "logs", "exec"}, words
        if verb in {"run", "exec"}:
            name = next(word for word in rest if not word.startswith("-"))
            given = rest[rest.index(name) + 1 :]
            parse(given[1:] if verb == "exec" else given)  # `run` has the image's entry point before it
            rest = [name]
        named = [word.partition("=")[0] for word in rest if not word.startswith("-") and word != "10m"]
        assert set(named) <= set(compose["services"]), words


def test_the_values_of_the_page_are_values_of_the_chart(tmp_path: Path) -> None:
    """Helm takes them, with the schema of the chart's values."""
    helm = tool("helm")
    if not helm:
        pytest.skip("there is no helm here; `make deploy-tools` brings it")
    values = tmp_path / "my-values.yaml"
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    values.write_text(example)
    for words in commands("helm"):
        if words[1] not in {"install", "upgrade"}:
            assert words[1] in {"test", "uninstall"}
            continue
        given = [
            str(values) if word == "my-values.yaml" else word for word in words[2:] if word != "--create-namespace"
        ]
        done = subprocess.run([helm, "template", *given], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "kafka-3:9093" in done.stdout


def test_topics_that_an_administrator_makes_are_those_that_a_service_makes() -> None:
    """With every promise of theirs in their settings."""
    made = {}
    for words in commands("kafka-topics.sh"):
        if "--create" in words:
            pairs = dict(zip(words[2::2], words[3::2], strict=False))
            configs = dict(words[n + 1].split("=", 1) for n, word in enumerate(words) if word == "--config")
            made[pairs["--topic"]] = (int(pairs["--partitions"]), configs)
    wanted = {spec.name: _creation(spec) for spec in KafkaSettings().topics()}
    assert made == {name: (each["num_partitions"], each["configs"]) for name, each in wanted.items()}
