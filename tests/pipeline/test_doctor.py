"""Doctor: against servers that are there, that are away, and that are not as they should be."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import doctor
from pipeline.bus import CAMERAS, FACE_CROPS, PREDICTIONS, TopicSpec
from pipeline.camera_topic import publish
from pipeline.cli import main
from pipeline.doctor import Wanted, examine
from pipeline.errors import ConfigError
from pipeline.findings import PARTS, Finding, State, clock_finding, document, table
from pipeline.kafka_bus import KafkaBus
from pipeline.kafka_findings import group_finding
from pipeline.kafka_survey import Group
from pipeline.redis_findings import redis_findings
from pipeline.settings import KafkaSettings
from tests.servers import KafkaServer, ValkeyServer, free_port, wait_until

SECRETS = ("hunter2", "s3same", "open-the-door")
PARTITIONS = 2

Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Set settings; where nothing is said, nobody listens."""

    def set_them(**settings: str) -> None:
        away = f"127.0.0.1:{free_port()}"
        there = {
            "KAFKA__BOOTSTRAP_SERVERS": away,
            "REDIS__URL": f"redis://{away}/0",
            "KAFKA__PARTITIONS": str(PARTITIONS),
        }
        for name, value in {**there, **settings}.items():
            monkeypatch.setenv(f"DEMOGRAPHICS_{name}", value)

    return set_them


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaServer]:
    """Run a Kafka of one's own: doctor looks at topics by their real names."""
    with KafkaServer(tmp_path / "kafka") as server:
        yield server


def found(*parts: str, cameras: Path | None = None, open_cameras: bool = False) -> list[Finding]:
    """Give what doctor finds of some parts."""
    findings = list(examine(Wanted(cameras, open_cameras=open_cameras, model=False, parts=parts)))
    assert {finding.part for finding in findings} <= set(parts)
    return findings


def worst(findings: list[Finding]) -> State:
    """Give the state of the worst."""
    return State(document(findings)["state"])


# --- nothing there ----------------------------------------------------------------------------------------------------


def test_where_nothing_runs_everything_is_said_and_what_to_do(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each part has its say, what depends on another says so, and the exit status tells scripts."""
    environment(
        KAFKA__SECURITY_PROTOCOL="SASL_PLAINTEXT", KAFKA__USERNAME="u", KAFKA__PASSWORD=SECRETS[0],
        REDIS__URL=f"redis://counter:{SECRETS[1]}@127.0.0.1:{free_port()}/0",
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["demographics", "doctor", "--quick", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["state"] == "failed"
    by_part = {part: [f["state"] for f in report["findings"] if f["part"] == part] for part in PARTS}
    assert by_part["kafka"] == ["failed"]
    assert by_part["redis"] == ["failed"]
    assert by_part["topics"] == by_part["groups"] == ["skipped"]
    assert by_part["clock"] == ["skipped", "skipped"]
    assert by_part["model"] == ["ok"]
    assert all(f["do"] for f in report["findings"] if f["state"] != "ok")
    assert not any(secret in said.out + said.err for secret in SECRETS)


def test_settings_that_are_wrong_are_all_listed(environment: Environment) -> None:
    """They are what everything else hangs on."""
    environment(KAFKA__PARTITIONS="none", REDIS__NAMESPACE="a b")
    findings = list(examine(Wanted(model=False)))
    failed = [finding.what for finding in findings if finding.state is State.FAILED]
    assert len(failed) == 2
    assert "PARTITIONS" in failed[0] + failed[1]
    assert "NAMESPACE" in failed[0] + failed[1]


def test_an_open_page_and_a_log_shorter_than_the_windows_are_warned_of(environment: Environment) -> None:
    """Valid one by one, not together."""
    environment(HTTP__HOST="0.0.0.0", KAFKA__PREDICTIONS_RETENTION_S="3600")
    said = " ".join(finding.what for finding in found("settings") if finding.state is State.WARNING)
    assert "without a token" in said
    assert "longest window" in said


def test_a_look_that_fails_as_nobody_foresaw_keeps_nobody_from_the_rest(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are not shown: nobody knows what is in them."""
    environment()

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(SECRETS[0])

    monkeypatch.setattr(doctor, "_model", fails)
    findings = found("model", "gpu")
    assert findings[0].what == "looking failed (RuntimeError)"
    assert findings[1].part == "gpu"


# --- cameras and model ------------------------------------------------------------------------------------------------


def test_cameras_of_a_file_are_read_and_opened_where_asked(environment: Environment, tmp_path: Path) -> None:
    """A file with mistakes lists them; an address where nobody answers fails, its password hidden."""
    environment()
    file = tmp_path / "cameras.yaml"
    file.write_text(f"cameras:\n  - {{id: hall, url: 'rtsp://viewer:{SECRETS[0]}@127.0.0.1:{free_port()}/x'}}\n")
    assert worst(found("cameras", cameras=file)) is State.OK
    opened = found("cameras", cameras=file, open_cameras=True)
    assert [finding.state for finding in opened] == [State.OK, State.FAILED]
    assert SECRETS[0] not in str(opened)
    file.write_text("cameras:\n  - {id: 'a b', url: 'gopher://x'}\n  - {id: hall}\n")
    assert len([f for f in found("cameras", cameras=file) if f.state is State.FAILED]) >= 2


def test_a_swapped_model_is_told(environment: Environment, tmp_path: Path) -> None:
    """The digest is checked even where the network is not run."""
    folder = tmp_path / "model"
    folder.mkdir()
    manifest = Path("models/default/manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "model.keras").write_bytes(b"another")
    environment(INFERENCE__MODEL=str(folder))
    (finding,) = found("model")
    assert finding.state is State.FAILED
    assert "sha256" in finding.what


@pytest.mark.parametrize(
    "missing", [{"cv2"}, {"tensorflow", "jax", "ai_edge_litert", "tf2onnx"}], ids=["aggregator", "ingest"]
)
def test_where_the_network_cannot_run_doctor_says_where_it_does(
    missing: set[str], environment: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the image of a service that has no engine for it: the weights are checked, and nothing failed."""
    there = importlib.util.find_spec
    for place in ("importlib.util.find_spec", "inference.engines.find_spec"):
        monkeypatch.setattr(place, lambda name: None if name in missing else there(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment()
    whole, run = list(examine(Wanted(parts=("model",))))
    assert whole.state is State.OK
    assert run.state is State.SKIPPED
    assert "where inference runs" in run.do


# --- Redis ------------------------------------------------------------------------------------------------------------


def test_a_store_that_keeps_its_counts_is_well(environment: Environment, tmp_path: Path) -> None:
    """With a log and without eviction."""
    with ValkeyServer(tmp_path / "v", append_only=True) as server:
        environment(REDIS__URL=server.url)
        findings = found("redis")
    assert {finding.state for finding in findings} == {State.OK}
    assert "Valkey" in findings[0].what


def test_a_store_that_forgets_or_throws_away_is_told(environment: Environment, tmp_path: Path) -> None:
    """No log, an evicting policy with a limit, and a wrong password."""
    with ValkeyServer(tmp_path / "v", settings={"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}) as server:
        environment(REDIS__URL=server.url)
        states = {finding.what.split()[0]: finding.state for finding in found("redis") if finding.state is not State.OK}
        assert states == {"maxmemory-policy": State.FAILED, "it": State.WARNING}
    with ValkeyServer(tmp_path / "w", settings={"requirepass": SECRETS[0]}) as server:
        environment(REDIS__URL=server.url.replace("://", f"://:{SECRETS[1]}@"))
        (finding,) = found("redis")
        assert "refuses the user name or password" in finding.what
        assert SECRETS[1] not in str(finding)


WELL: dict[str, Any] = {
    "redis_version": "7.2.4", "role": "master", "used_memory": 1 << 20, "maxmemory": 256 << 20,
    "maxmemory_policy": "noeviction", "aof_enabled": 1, "aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, State.OK),
        ({"redis_version": "5.0.7"}, State.FAILED),
        ({"role": "slave"}, State.FAILED),
        ({"loading": 1}, State.WARNING),
        ({"used_memory": 250 << 20}, State.WARNING),
        ({"aof_last_write_status": "err"}, State.FAILED),
        ({"rdb_last_bgsave_status": "err"}, State.FAILED),
        ({"aof_enabled": 0}, State.WARNING),
        ({"maxmemory_policy": "volatile-ttl"}, State.FAILED),
        ({"maxmemory_policy": "volatile-ttl", "maxmemory": 0}, State.WARNING),
    ],
)
def test_what_redis_says_of_itself_is_judged(change: dict[str, Any], state: State) -> None:
    """One thing amiss at a time."""
    findings = list(redis_findings({**WELL, **change}, "redis://x"))
    assert worst(findings) is state
    assert all(finding.do for finding in findings if finding.state is not State.OK)


# --- Kafka ------------------------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_a_kafka_is_looked_at_from_empty_to_working(environment: Environment, broker: KafkaServer) -> None:
    """Nothing there, topics, records that nobody reads, members; and nothing is made by looking."""
    environment(KAFKA__BOOTSTRAP_SERVERS=broker.bootstrap_servers)
    bus = KafkaBus(broker.bootstrap_servers)
    try:
        assert "not there" in found("topics")[0].what
        assert bus.retentions([FACE_CROPS, PREDICTIONS]) == {}

        bus.ensure_topics(KafkaSettings(partitions=PARTITIONS).topics())
        assert worst(found("kafka", "topics")) is State.OK
        assert [finding.what for finding in found("groups")] == [
            "inference: nobody has ever joined; 0 records wait",
            "aggregator: nobody has ever joined; 0 records wait",
        ]
        assert "there are none" in found("cameras")[0].what

        publish(bus, [{"id": "hall", "url": "rtsp://${NOT_SET}@10.0.0.12/x"}])
        assert "NOT_SET" in found("cameras")[0].what

        producer = bus.producer()
        for n in range(5):
            producer.send(PREDICTIONS, key=b"hall", value=b"%d" % n, headers=())
        producer.flush(10)
        assert "5 records wait" in found("groups")[1].what
        assert found("clock")[1].what == "Kafka's: not ahead"

        consumer = bus.consumer(PREDICTIONS, group="aggregator")
        taken = 0
        while taken < 5:
            records = consumer.poll(5, 100)
            assert records
            taken += len(records)
        consumer.commit({records[-1].topic_partition: records[-1].offset + 1})
        assert found("groups")[1].what == "aggregator: 1 members, stable; 0 records wait"
        assert worst(found("disk")) in {State.OK, State.WARNING}
    finally:
        bus.close()


@pytest.mark.kafka
def test_topics_that_break_a_promise_are_told_with_the_command_that_mends_them(
    environment: Environment, broker: KafkaServer
) -> None:
    """Pictures that outlive their use, cameras that are deleted, other partitions than the setting says."""
    environment(KAFKA__BOOTSTRAP_SERVERS=broker.bootstrap_servers)
    bus = KafkaBus(broker.bootstrap_servers)
    bus.ensure_topics([TopicSpec(FACE_CROPS, 3, 86400), TopicSpec(CAMERAS, 2, 600), TopicSpec(PREDICTIONS, 2, 3600)])
    amiss = {finding.what.partition(":")[0]: finding for finding in found("topics") if finding.state is not State.OK}
    assert amiss[FACE_CROPS].state is State.FAILED
    assert "retention.ms=600000" in amiss[FACE_CROPS].do
    assert amiss[CAMERAS].state is State.FAILED
    assert amiss[PREDICTIONS].state is State.WARNING
    assert any("face-crops has 3" in name for name in amiss)
    assert "dead-letters" in amiss["not there"].what

    for name in (FACE_CROPS, CAMERAS, PREDICTIONS):
        script, *options = shlex.split(amiss[name].do)
        assert script == "kafka-configs.sh"
        broker.administer("kafka.admin.ConfigCommand", *options)
    wait_until(lambda: bus.retentions([CAMERAS]) == {CAMERAS: inf}, timeout_s=10, what="the brokers' heed")
    bus.close()
    still = [finding.what for finding in found("topics") if finding.state is not State.OK]
    assert [what.partition(":")[0] for what in still] == [
        "not there",
        "the setting says 2 partitions, face-crops has 3",
    ]


# --- how it is said ---------------------------------------------------------------------------------------------------


@given(st.lists(st.builds(Finding, st.sampled_from(PARTS), st.sampled_from(State), st.text(), st.text())))
def test_the_whole_is_as_bad_as_its_worst_part(findings: list[Finding]) -> None:
    """And whatever is in the words, the table is drawn."""
    report = document(findings)
    states = [finding["state"] for finding in report["findings"]]
    assert (report["state"] == "failed") == ("failed" in states)
    assert (report["state"] == "ok") == (not {"failed", "warning"} & set(states))
    assert table(findings).row_count >= len(findings)


def test_the_words_of_an_error_are_taken_apart(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do stands behind the last semicolon of every error of ours."""
    environment()

    def fails(*_: object, **__: object) -> None:
        raise ConfigError(["one is wrong; mend one", "two is wrong; mend two"])

    monkeypatch.setattr(doctor, "_model", fails)
    assert [(f.what, f.do) for f in found("model")] == [("one is wrong", "mend one"), ("two is wrong", "mend two")]


@pytest.mark.parametrize(
    ("ahead_s", "known_behind", "state"),
    [
        (0.5, True, State.OK),
        (-3, True, State.WARNING),
        (3, True, State.WARNING),
        (-3, False, State.OK),  # the newest record is only as new as the last thing that happened
        (3, False, State.WARNING),
        (400, True, State.FAILED),
    ],
)
def test_clocks_that_differ_are_told(ahead_s: float, known_behind: bool, state: State) -> None:
    """Seconds shift people to another bucket; minutes make them a dead letter."""
    assert clock_finding("x", ahead_s, known_behind=known_behind).state is state


@pytest.mark.parametrize(
    ("group", "oldest_s", "state"),
    [
        (None, 0, State.WARNING),
        (Group("Empty", 0, {}), 500, State.WARNING),
        (Group("Stable", 2, {}), 5, State.OK),
        (Group("Stable", 2, {}), 120, State.WARNING),
        (Group("Stable", 2, {}), 400, State.FAILED),
    ],
)
def test_a_group_is_judged_by_how_long_its_records_wait(group: Group | None, oldest_s: float, state: State) -> None:
    """Past half of the retention, some are deleted before they are read."""
    assert group_finding("inference", FACE_CROPS, group, 7, oldest_s, kept_s=600).state is state
