"""The Helm chart: rendered by Helm, held to Kubernetes' schemas, to KEDA's and the Prometheus operator's, and to its promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest
import yaml

from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.cameras import parse_cameras
from pipeline.settings import documented
from tests.deploy.tools import NEWEST, OLDEST, schemas, tool

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "deploy" / "kubernetes" / "demographics"
SERVICES: Final = ("ingest", "inference", "aggregator")
APIS: Final = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")
Manifest = dict[str, Any]

SECURED: Final = """
image: {registry: registry.example.com, pullSecrets: [registry]}
kafka:
  bootstrapServers: k1:9093,k2:9093
  securityProtocol: SASL_SSL
  credentials: {secretName: kafka-user}
  ca: {secretName: kafka-ca}
redis: {secretName: redis-address}
http: {tokenSecretName: page-token}
settings: {DEMOGRAPHICS_ATTRIBUTES: '["age", "gender"]'}
cameras:
  source: file
  secretName: cameras
  list: [{id: entrance, url: "rtsp://viewer:${ENTRANCE_PASSWORD}@10.0.0.11/stream2", zone: [[0.1, 0.2], [0.9, 0.2], [0.9, 1]]}]
ingest:
  extraVolumes: [{name: more, emptyDir: {}}]
  extraVolumeMounts: [{name: more, mountPath: /more}]
  secrets:
    DEMOGRAPHICS_KAFKA__USERNAME: {secretName: kafka-ingest, key: username}
    DEMOGRAPHICS_KAFKA__PASSWORD: {secretName: kafka-ingest, key: password}
inference: {secrets: {DEMOGRAPHICS_LOG_LEVEL: {secretName: more, key: level}}, affinity: {nodeAffinity: {}}}
doctor:
  secrets:
    DEMOGRAPHICS_KAFKA__USERNAME: {secretName: kafka-operator, key: username}
    DEMOGRAPHICS_KAFKA__PASSWORD: {secretName: kafka-operator, key: password}
    DEMOGRAPHICS_REDIS__URL: {secretName: redis-operator, key: url}
priorityClassName: high
podAnnotations: {a: b}
podLabels: {c: d}
ingress: {enabled: true, className: nginx, tlsSecretName: page-tls}
networkPolicy:
  kafka: {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kafka}}}], ports: [9093]}
  pageFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}}]
"""
LISTED: Final = """
cameras: {prune: true, list: [{id: hall, url: "rtsp://10.0.0.12/stream2"}]}
"""
CASES: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "gpu": ("-f", str(CHART / "values-gpu.yaml")),
    "secured": ("SECURED",),
    "listed": ("LISTED",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the values of the cases down."""
    folder = tmp_path_factory.mktemp("chart")
    (folder / "SECURED").write_text(SECURED)
    (folder / "LISTED").write_text(LISTED)
    return folder


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    found = tool("helm")
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail("CI renders the chart; `make deploy-tools` brings Helm")
        pytest.skip("there is no helm here; `make deploy-tools` brings it")
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, check=False)


def rendered(folder: Path, case: str, *more: str, apis: tuple[str, ...] = APIS) -> list[Manifest]:
    """Render the chart."""
    options = [word if word.startswith(("-", "/")) else f"-f{folder / word}" for word in CASES[case]]
    given = [word for api in apis for word in ("--api-versions", api)]
    done = helm("template", "shop", CHART, "--namespace", "vision", *options, *given, *more)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Pick by kind, by name without the release's."""
    return {
        one["metadata"]["name"].removeprefix("shop-demographics").lstrip("-"): one
        for one in manifests
        if one["kind"] == kind
    }


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Give name, labels and spec of every pod there will be."""
    for one in manifests:
        name = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] in {"Deployment", "Job"}:
            template = one["spec"]["template"]
            yield name, template["metadata"]["labels"], template["spec"]
        elif one["kind"] == "Pod":
            yield name, one["metadata"]["labels"], one["spec"]


def environment_of(spec: Manifest) -> dict[str, Manifest]:
    """Give a pod's variables by name."""
    return {variable["name"]: variable for variable in spec["containers"][0]["env"]}


# --- schemas ----------------------------------------------------------------------------------------------------------


@cache
def kubernetes_schema(version: str, api: str, kind: str) -> jsonschema_rs.Validator | None:
    """Give the schema of a kind in a version of Kubernetes, unknown keys refused."""
    document = json.loads(schemas(version).read_text())
    for name, definition in document["$defs"].items():
        properties = definition.get("properties", {})
        if name.endswith(f".{kind}") and api in properties.get("apiVersion", {}).get("enum", ()):
            return jsonschema_rs.validator_for({**document, "$ref": f"#/$defs/{name}"})
    return None


@cache
def resource_schema(kind: str) -> jsonschema_rs.Validator:
    """Give the schema of one of KEDA's or the Prometheus operator's kinds, unknown keys refused."""
    from cloudcoil.models.keda import v1alpha1 as keda  # noqa: PLC0415  seconds of import, for these tests only
    from cloudcoil.models.prometheus_operator import v1 as operator  # noqa: PLC0415

    model = getattr(keda, kind, None) or getattr(operator, kind)
    schema = model.model_json_schema(by_alias=True)
    for definition in (schema, *schema["$defs"].values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
    return jsonschema_rs.validator_for(schema)


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_no_fault(folder: Path, case: str) -> None:
    """`helm lint --strict`, which holds the values to their schema, too."""
    options = [word if word.startswith(("-", "/")) else f"-f{folder / word}" for word in CASES[case]]
    done = helm("lint", "--strict", CHART, *options)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("case", CASES)
def test_every_object_is_one_that_kubernetes_knows(folder: Path, case: str, version: str) -> None:
    """Each is valid in the oldest and the newest version that the chart is for, with no key that nobody reads."""
    manifests = rendered(folder, case, "--kube-version", version)
    for one in manifests:
        api, kind = one["apiVersion"], one["kind"]
        schema = resource_schema(kind) if api in APIS else kubernetes_schema(version, api, kind)
        assert schema is not None, f"Kubernetes {version} has no {kind} in {api}"
        assert [str(error) for error in schema.iter_errors(one)] == [], one["metadata"]["name"]
        assert not list(nulls(one)), f"{kind} {one['metadata']['name']}"


def nulls(value: object, path: str = "") -> Iterator[str]:
    """Name every place where nothing stands: a template that lost its value."""
    if value is None:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nulls(item, f"{path}/{key}")


def test_the_schemas_notice_a_mistake(folder: Path) -> None:
    """Otherwise the test above says nothing."""
    manifests = rendered(folder, "default")
    deployment = of_kind(manifests, "Deployment")["inference"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    schema = kubernetes_schema(NEWEST, "apps/v1", "Deployment")
    assert schema is not None
    assert not schema.is_valid(deployment)
    scaled = of_kind(manifests, "ScaledObject")["inference"]
    scaled["spec"]["minReplicas"] = 1
    assert not resource_schema("ScaledObject").is_valid(scaled)


# --- the services -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_services_run_as_compose_has_them(folder: Path, case: str) -> None:
    """The same commands and ports, nothing but /tmp writable, nobody root, no token of the cluster's."""
    manifests = rendered(folder, case)
    deployments = of_kind(manifests, "Deployment")
    assert set(deployments) == set(SERVICES)
    for service, deployment in deployments.items():
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        command = {"ingest": "ingest", "inference": "infer", "aggregator": "aggregate"}[service]
        assert container["args"][0] == command
        port = {"ingest": 9101, "inference": 9102, "aggregator": 8080}[service]
        assert container["ports"] == [{"name": "http", "containerPort": port}]
        assert {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness")} == {"/healthz"}
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    for name, _, spec in pod_specs(manifests):
        container = spec["containers"][0]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["automountServiceAccountToken"] is False, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }, name  # fmt: skip
        assert container["resources"]["limits"]["memory"], name
        writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        assert writable == ["/tmp", *(["/more"] if case == "secured" and "ingest" in name else [])], name


@pytest.mark.parametrize("case", CASES)
def test_no_service_is_given_a_setting_that_there_is_not(folder: Path, case: str) -> None:
    """An unknown one keeps a service from starting; and only the aggregator knows where the counts are."""
    known = {row.variable for row in documented()}
    for name, _, spec in pod_specs(rendered(folder, case)):
        given = environment_of(spec)
        assert set(given) <= known, name
        counts = "aggregator" in name or "doctor" in name
        assert ("DEMOGRAPHICS_REDIS__URL" in given) == counts, name
        assert given["DEMOGRAPHICS_KAFKA__FACE_CROPS_RETENTION_S"]["value"] == "600"


@pytest.mark.parametrize("case", CASES)
def test_each_setting_is_given_once(folder: Path, case: str) -> None:
    """Of two of one name the last would win, whichever that is."""
    for name, _, spec in pod_specs(rendered(folder, case)):
        given = [variable["name"] for variable in spec["containers"][0]["env"]]
        assert len(given) == len(set(given)), name


def test_a_service_may_have_a_user_of_its_own_on_kafka(folder: Path) -> None:
    """With the rights of deploy/security/kafka-acls.sh; the others share one."""
    for service, deployment in of_kind(rendered(folder, "secured"), "Deployment").items():
        given = environment_of(deployment["spec"]["template"]["spec"])
        whose = given["DEMOGRAPHICS_KAFKA__USERNAME"]["valueFrom"]["secretKeyRef"]["name"]
        assert whose == ("kafka-ingest" if service == "ingest" else "kafka-user")


def test_doctor_may_be_the_operator(folder: Path) -> None:
    """Who sees more than any service may: groups, brokers' disks, how Redis is."""
    given = environment_of(of_kind(rendered(folder, "secured"), "Pod")["doctor"]["spec"])
    for name in ("KAFKA__USERNAME", "KAFKA__PASSWORD", "REDIS__URL"):
        assert given[f"DEMOGRAPHICS_{name}"]["valueFrom"]["secretKeyRef"]["name"].endswith("-operator")


def test_secrets_are_references(folder: Path) -> None:
    """A password, an address that holds one, and a token are named, and stand in no object."""
    manifests = rendered(folder, "secured")
    secret = ("KAFKA__USERNAME", "KAFKA__PASSWORD", "REDIS__URL", "HTTP__TOKEN")
    for service, deployment in of_kind(manifests, "Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        given = environment_of(spec)
        for name in secret:
            if name != "REDIS__URL" or service == "aggregator":
                assert "secretKeyRef" in given[f"DEMOGRAPHICS_{name}"]["valueFrom"], (service, name)
        # what the cameras' addresses name is for ingest alone
        assert ("envFrom" in spec["containers"][0]) == (service == "ingest")
    assert not [one for one in manifests if one["kind"] == "Secret"]
    monitor = of_kind(manifests, "ServiceMonitor")["aggregator"]
    assert monitor["spec"]["endpoints"][0]["authorization"]["credentials"]["name"] == "page-token"
    done = helm("template", "x", CHART, "--set", "redis.url=redis://:password@redis:6379/0")
    assert done.returncode != 0
    assert "/redis/url" in done.stderr


def test_inference_on_gpus_asks_for_one_and_goes_where_they_are(folder: Path) -> None:
    """Its own image, one GPU each, and no surge: there may be none to spare."""
    inference = of_kind(rendered(folder, "gpu"), "Deployment")["inference"]["spec"]
    spec = inference["template"]["spec"]
    assert spec["containers"][0]["image"] == "demographics-inference-gpu:0.1.0"
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert inference["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    plain = of_kind(rendered(folder, "default"), "Deployment")["inference"]["spec"]["template"]["spec"]
    assert plain["containers"][0]["image"] == "demographics-inference:0.1.0"
    assert "nodeSelector" not in plain


def test_services_find_their_own_pods_and_no_passing_ones(folder: Path) -> None:
    """Doctor and the job that writes cameras reach what a service reaches, and get none of its visitors."""
    manifests = rendered(folder, "listed")
    pods = {name: labels for name, labels, _ in pod_specs(manifests)}
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for service, one in of_kind(manifests, kind).items():
            selector = one["spec"].get("selector") or one["spec"]["podSelector"]
            wanted = selector.get("matchLabels", selector)
            found = {name for name, labels in pods.items() if wanted.items() <= labels.items()}
            expected = {f"Deployment shop-demographics-{service}"}
            if kind == "NetworkPolicy":
                expected |= {
                    "ingest": {"Job shop-demographics-cameras"},
                    "aggregator": {"Pod shop-demographics-doctor"},
                }.get(service, set())
            assert found == expected, (kind, service)


def test_each_service_reaches_what_it_needs_and_no_more(folder: Path) -> None:
    """Cameras are for ingest, Redis is for the aggregator; nothing may come in but who scrapes, and who looks."""
    policies = of_kind(rendered(folder, "secured"), "NetworkPolicy")
    ports = {
        service: {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        for service, policy in policies.items()
    }
    assert ports == {"ingest": {53, 9093, 554, 8554, 80, 443}, "inference": {53, 9093}, "aggregator": {53, 9093, 6379}}
    callers = {service: len(policy["spec"]["ingress"][0]["from"]) for service, policy in policies.items()}
    assert callers == {"ingest": 1, "inference": 1, "aggregator": 2}


# --- cameras ----------------------------------------------------------------------------------------------------------


def test_cameras_of_a_file_are_run_by_one_worker(folder: Path) -> None:
    """Two would count everybody twice: refused; and an upgrade ends the old one first."""
    manifests = rendered(folder, "secured")
    ingest = of_kind(manifests, "Deployment")["ingest"]["spec"]
    assert ingest["strategy"] == {"type": "Recreate"}
    assert ingest["template"]["spec"]["containers"][0]["args"] == ["ingest", "/etc/demographics/cameras/cameras.yaml"]
    text = of_kind(manifests, "ConfigMap")["cameras"]["data"]["cameras.yaml"]
    (camera,) = parse_cameras(yaml.safe_load(text), "the chart's", {"ENTRANCE_PASSWORD": "x"})
    assert camera.id == "entrance"
    done = helm("template", "x", CHART, f"-f{folder / 'SECURED'}", "--set", "ingest.replicas=2")
    assert "ingest.replicas" in done.stderr


def test_cameras_of_a_list_go_into_the_topic(folder: Path) -> None:
    """A job writes them after each upgrade; the workers share them."""
    manifests = rendered(folder, "listed")
    job = of_kind(manifests, "Job")["cameras"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == ["cameras", "apply", "/etc/demographics/cameras/cameras.yaml", "--prune"]
    assert of_kind(manifests, "Deployment")["ingest"]["spec"]["template"]["spec"]["containers"][0]["args"] == ["ingest"]


# --- scaling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_keda_scales_on_lag(folder: Path, case: str) -> None:
    """On the groups and topics that the services have; no more workers than partitions, none for one that is stuck."""
    manifests = rendered(folder, case)
    scaled = of_kind(manifests, "ScaledObject")
    topics = {service: one["spec"]["triggers"][0]["metadata"]["topic"] for service, one in scaled.items()}
    assert topics == {"inference": FACE_CROPS, "aggregator": PREDICTIONS}
    for service, one in scaled.items():
        said = one["spec"]["triggers"][0]["metadata"]
        assert said["consumerGroup"] == service
        assert said["excludePersistentLag"] == said["limitToPartitionsWithLag"] == "true"
        assert said["allowIdleConsumers"] == "false"
        assert all(isinstance(value, str) for value in said.values())
        assert one["spec"]["scaleTargetRef"]["name"] == f"shop-demographics-{service}"
        assert "replicas" not in of_kind(manifests, "Deployment")[service]["spec"]
    if case == "secured":
        said = scaled["inference"]["spec"]["triggers"][0]
        assert (said["metadata"]["sasl"], said["metadata"]["tls"]) == ("scram_sha512", "enable")
        parameters = of_kind(manifests, "TriggerAuthentication")["kafka"]["spec"]["secretTargetRef"]
        assert {each["parameter"] for each in parameters} == {"username", "password", "ca"}


def test_more_workers_than_partitions_are_refused() -> None:
    """They would have no work."""
    done = helm("template", "x", CHART, "--set", "autoscaling.enabled=true", "--set", "kafka.partitions=4")
    assert "maxReplicas" in done.stderr


def test_a_cluster_without_keda_and_operator_gets_fixed_numbers(folder: Path) -> None:
    """What it has no API for is left out."""
    manifests = rendered(folder, "default", apis=())
    assert not [one for one in manifests if one["apiVersion"] in APIS]
    replicas = {name: one["spec"]["replicas"] for name, one in of_kind(manifests, "Deployment").items()}
    assert replicas == {"ingest": 1, "inference": 1, "aggregator": 2}


# --- monitoring -------------------------------------------------------------------------------------------------------


def test_rules_and_dashboards_are_those_of_the_project(folder: Path) -> None:
    """The same files, not copies of them."""
    manifests = rendered(folder, "default")
    rules = of_kind(manifests, "PrometheusRule")
    files = {path.stem.replace("_", "-"): path for path in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")}
    assert rules.keys() == files.keys()
    for name, path in files.items():
        assert rules[name]["spec"] == yaml.safe_load(path.read_text())
    boards = {name: one for name, one in of_kind(manifests, "ConfigMap").items() if name.startswith("dashboard-")}
    dashboards = {
        f"dashboard-{path.stem}": path for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
    }
    assert boards.keys() == dashboards.keys()
    for name, path in dashboards.items():
        assert json.loads(boards[name]["data"][path.name]) == json.loads(path.read_text())
        assert boards[name]["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_what_is_scraped_has_the_labels_that_the_rules_know(folder: Path) -> None:
    """The rules take each count once, `without (instance, job)`: a pod's name beside them would count people once a pod."""
    for service, monitor in of_kind(rendered(folder, "default"), "ServiceMonitor").items():
        (endpoint,) = monitor["spec"]["endpoints"]
        labels = {
            "job": "x",
            "instance": "i",
            "namespace": "n",
            "pod": "p",
            "service": "s",
            "endpoint": "e",
            "container": "c",
        }
        for step in endpoint["relabelings"]:
            if step["action"] == "replace":
                labels[step["targetLabel"]] = step["replacement"]
            else:
                assert step["action"] == "labeldrop"
                labels = {name: value for name, value in labels.items() if not re.fullmatch(step["regex"], name)}
        assert labels == {"job": service, "instance": "i", "namespace": "n"}


# --- values and package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "settings.DEMOGRAPHICS_LOG_LEVLE=INFO",
        "settings.DEMOGRAPHICS_KAFKA__PASSWORD=x",
        "kafka.faceCropsRetentionSeconds=86400",
        "kafka.bootstrapServers=kafka",
        "inference.gpu.enabeld=true",
        "cameras.source=both",
    ],
)
def test_values_that_are_wrong_are_refused(wrong: str) -> None:
    """Before anything is installed; pictures cannot be kept for a day by a value."""
    done = helm("template", "x", CHART, "--set", wrong)
    assert done.returncode != 0
    assert "schema" in done.stderr


def test_a_packaged_chart_carries_what_it_links_to(tmp_path: Path) -> None:
    """The links to rules and dashboards become files."""
    done = helm("package", CHART, "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as package:
        names = {member.name for member in package.getmembers() if member.isfile()}
    assert "demographics/files/rules/alerts.yml" in names
    assert "demographics/files/dashboards/visitors.json" in names


def test_the_chart_is_of_the_projects_version() -> None:
    """The images that it runs are those that this version builds."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version
    assert chart["appVersion"] == version[1]
