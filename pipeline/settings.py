"""Every setting, with its default and what it is for; read from the environment, all problems listed at once.

A setting is an environment variable: DEMOGRAPHICS_<SECTION>__<NAME>. docs/configuration.md is generated from this module
(`make docs`). Cameras are not settings: they live in cameras.yaml (see cameras.py).
"""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.attributes import ATTRIBUTES, Attribute, in_order
from pipeline.bus import AUDIT, CAMERAS, DEAD_LETTERS, FACE_CROPS, PREDICTIONS, SWITCHES, TopicSpec
from pipeline.errors import ConfigError
from pipeline.manifest import DEFAULT_MODEL, EngineName
from pipeline.redaction import redact
from pipeline.sealing import parse_keys

PREFIX: Final = "DEMOGRAPHICS_"
Scheme = Literal["rtsp", "rtsps", "http", "https", "file"]
SCHEMES: Final[tuple[Scheme, ...]] = ("rtsp", "rtsps", "http", "https", "file")
LONGEST_WINDOW_S: Final = 31 * 86400
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_window(text: str) -> int:
    """Give the seconds of a window such as 30s, 15m, 24h or 7d. Raises ValueError."""
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in _UNITS or int(number) == 0:
        raise ValueError(f"'{text}' is no window; write a number and s, m, h or d, such as 15m")
    return int(number) * _UNITS[unit]


def _windows(names: tuple[str, ...]) -> tuple[str, ...]:
    seconds = [parse_window(name) for name in names]
    if not names or sorted(set(seconds)) != seconds:
        raise ValueError("name at least one window, shortest first, each once")
    if seconds[-1] > LONGEST_WINDOW_S:
        raise ValueError("no window may be longer than 31d: buckets are kept for as long as the longest")
    return names


def _token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if text and (len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text):
        raise ValueError("is no good token; use 16 or more letters and digits, such as `openssl rand -hex 16` gives")
    return token


def _crop_keys(keys: SecretStr) -> SecretStr:
    parse_keys(keys.get_secret_value())
    return keys


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """The log between the services."""

    bootstrap_servers: str = Field(
        "localhost:9092", description="host:port of one or more brokers, separated by commas"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how the brokers are spoken to"
    )
    ca_file: Path | None = Field(
        None, description="certificate authority of the brokers, PEM; the system's where empty"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="with SASL_*"
    )
    username: str = Field("", description="with SASL_*")
    password: SecretStr = Field(SecretStr(""), description="with SASL_*")
    partitions: int = Field(12, ge=1, le=1000, description="of each topic that is created; more than workers ever run")
    replication: int = Field(1, ge=1, le=10, description="copies of each topic that is created; 3 in production")
    face_crops_retention_s: float = Field(
        600, ge=60, le=3600, description="how long face crops stay in Kafka; an hour at most"
    )
    predictions_retention_s: float = Field(
        86400, ge=3600, le=7 * 86400, description="how far back counts can be rebuilt"
    )
    dead_letters_retention_s: float = Field(7 * 86400, ge=3600, le=30 * 86400, description="how long dead letters stay")
    audit_retention_s: float = Field(
        400 * 86400,
        ge=86400,
        le=1100 * 86400,
        description="how long it stays written down who paused a camera, and why",
    )
    session_timeout_s: float = Field(
        10, ge=1, le=300, description="after this silence a worker's partitions go to others"
    )
    member: Annotated[str, Field(pattern=r"^([A-Za-z0-9_.-]|\{hostname\}){0,100}$")] = Field(
        "",
        description="lasting name of this worker, unlike any other's of its service: one that restarts within the session"
        " time-out gets its partitions back, and nobody else's move; {hostname} stands for the machine's name",
    )
    max_in_flight: int = Field(1000, ge=1, le=100_000, description="records sent and not yet acknowledged, at most")
    crop_keys: Annotated[SecretStr, AfterValidator(_crop_keys)] = Field(
        SecretStr(""),
        description="face crops are encrypted in Kafka with the first of these keys, and any of them opens (ingest and"
        " inference): NAME:KEY, keys as `openssl rand -base64 32` gives them, several separated by commas; empty: they are not",
    )

    @property
    def static_member(self) -> str | None:
        """Give this worker's name for static membership; None without one."""
        return self.member.replace("{hostname}", socket.gethostname()) or None

    def topics(self) -> tuple[TopicSpec, ...]:
        """List the topics as this deployment wants them."""
        retention = {
            FACE_CROPS: self.face_crops_retention_s,
            PREDICTIONS: self.predictions_retention_s,
            DEAD_LETTERS: self.dead_letters_retention_s,
            AUDIT: self.audit_retention_s,
        }
        kept = tuple(
            TopicSpec(name, self.partitions, retention_s, replication=self.replication)
            for name, retention_s in retention.items()
        )
        compacted = (
            TopicSpec(name, self.partitions, 0, replication=self.replication, compact=True)
            for name in (CAMERAS, SWITCHES)
        )
        return (*kept, *compacted)


class RedisSettings(_Section):
    """Where the counters live."""

    url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        description="redis://, rediss:// (TLS) or unix:// address of Redis or Valkey;"
        " redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB or redis+cluster://HOST:PORT,HOST:PORT",
    )
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")] = Field(
        "demographics", description="first part of every key"
    )
    ca_file: Path | None = Field(
        None, description="with rediss://: certificate authority of the server, PEM; the system's where empty"
    )
    # A record can come again for as long as Kafka keeps predictions, a week at most: until then tracks are needed to tell it.
    tracks_retention_s: float = Field(
        8 * 86400,
        ge=8 * 86400,
        le=30 * 86400,
        description="after this time without a record, what is held of a partition's tracks and cameras is deleted;"
        " 30 days at most",
    )
    totals_retention_s: float = Field(
        400 * 86400,
        ge=31 * 86400,
        le=1100 * 86400,
        description="after this time without a record, a partition's totals are deleted; three years at most",
    )


class IngestSettings(_Section):
    """From cameras to face crops."""

    detect_fps: float = Field(8, gt=0, le=60, description="frames per second and camera that are searched for faces")
    max_side_px: int = Field(
        640, ge=160, le=3840, description="frames are searched at this size; faces below 40 px of it are missed"
    )
    detector: Literal["auto", "onnxruntime", "opencv"] = Field(
        "auto",
        description="what finds the faces; auto: onnxruntime, which is faster, and opencv for a YuNet file that it cannot run",
    )
    detector_model: Path | None = Field(None, description="another YuNet file; empty: the one that is shipped")
    full_look_every: int = Field(
        1,
        ge=1,
        le=8,
        description="one look in so many searches the whole picture; those between only around the people who are followed",
    )
    least_detect_fps: float = Field(
        1, gt=0, le=60, description="a worker that cannot keep up searches each camera less often, down to this"
    )
    motion_gate: bool = Field(
        default=True, description="an empty scene is searched when something moves, and every still_s"
    )
    still_s: float = Field(2, gt=0, le=60, description="how often an empty scene in which nothing moves is searched")
    hwaccel: str = Field("", description="hardware that decodes: cuda, qsv ...; software where it is not to be had")
    max_crops: int = Field(8, ge=1, le=64, description="face crops sent for one track, at most")
    crop_interval_s: float = Field(0.6, gt=0, le=60, description="least time between two crops of a track")
    least_quality: float = Field(0.15, ge=0, le=1, description="crops below this quality are not sent")
    least_face_px: float = Field(20, ge=0, le=500, description="smaller faces are not predicted: unknown")
    least_sharpness: float = Field(0.02, ge=0, le=1, description="more blurred ones neither; 0.5 is ordinary")
    least_frontality: float = Field(
        0.2, ge=0, le=1, description="nor those turned further away; 1 looks into the camera, 0 is a profile"
    )
    least_exposure: float = Field(0.4, ge=0, le=1, description="nor those in the dark or burnt out; 1 is ordinary")
    least_hits: int = Field(3, ge=1, le=100, description="detections that make a track a visitor")
    max_gap_s: float = Field(2.5, gt=0, le=30, description="an occlusion up to this long is bridged")
    picture_s: float = Field(
        60,
        ge=0,
        le=3600,
        description="a face that does not move at all for this long is a poster and no visitor; 0: never",
    )
    reconnect_bridge_s: float = Field(
        10, ge=0, le=120, description="people in view before and after a loss or darkness up to this long are the same"
    )
    schemes: tuple[Scheme, ...] = Field(
        SCHEMES, min_length=1, description="what a camera's address may begin with; file is a film on the worker's disk"
    )
    networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description='networks in which cameras may be, such as ["10.20.0.0/16"]; empty: anywhere that the worker reaches',
    )
    open_timeout_s: float = Field(10, gt=0, le=120, description="how long a camera may take to answer")
    read_timeout_s: float = Field(
        5, gt=0, le=120, description="a camera that sends nothing for this long is reconnected"
    )
    stall_timeout_s: float = Field(
        5, gt=0, le=120, description="a connection that gives no picture for this long is given up, whatever it says"
    )
    max_fps: float = Field(120, gt=0, le=1000, description="a camera that sends more frames a second is out of order")
    max_backoff_s: float = Field(3, gt=0, le=600, description="longest wait between two attempts to reconnect")
    refused_backoff_s: float = Field(
        30, gt=0, le=3600, description="longest wait after a camera refused the password: too many attempts lock it"
    )
    status_interval_s: float = Field(2, gt=0, le=60, description="how often a camera's state is published")


class InferenceSettings(_Section):
    """From face crops to predictions."""

    model: Path = Field(DEFAULT_MODEL, description="folder of the model: weights and manifest.json")
    engine: Literal["auto"] | EngineName = Field(
        "auto",
        description="what runs the network: tensorflow, onnxruntime, litert, jax; auto: the fastest on this machine of those that"
        " are installed and agree with the model's golden batch; onnxruntime wants a model.onnx in the model's folder, or"
        " tf2onnx, which the images do not have",
    )
    max_batch: int = Field(32, ge=1, le=1024, description="face crops in one pass of the network, at most")
    max_wait_s: float = Field(0.02, ge=0, le=5, description="how long a crop may wait for others to share its pass")
    threads: int = Field(0, ge=0, le=256, description="threads of the network on a CPU; 0: as many as cores")
    decoders: int = Field(2, ge=1, le=64, description="threads that decode JPEG")
    ahead: int = Field(
        4, ge=1, le=64, description="where crops are waiting: passes of the network that are decoded while one runs"
    )


class AggregatorSettings(_Section):
    """From predictions to counts."""

    windows: Annotated[tuple[str, ...], AfterValidator(_windows)] = Field(
        ("1m", "5m", "15m", "1h", "24h"), description="rolling windows, shortest first; 31d at most"
    )
    enough_crops: int = Field(2, ge=1, le=64, description="a visitor is counted once this many crops are predicted")
    least_evidence: float = Field(
        0.15, ge=0, le=64, description="sum of crop qualities below which an ended track is counted as unknown"
    )
    idle_s: float = Field(60, ge=5, le=3600, description="a track is closed when nothing was heard of it for this long")
    smallest_group: int = Field(
        1,
        ge=1,
        le=1000,
        description="a camera's window, bucket or total with fewer visitors is published as a number, its breakdown as"
        " `suppressed`; 1 suppresses nothing, 5 or more is recommended wherever others than the operator look",
    )
    remember_s: float = Field(
        3600, ge=60, le=86400, description="how long a closed track is remembered, to tell repeats"
    )


class HttpSettings(_Section):
    """What each service answers on: /healthz, /readyz, /metrics; the aggregator's page and API too."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 in a container")
    port: int | None = Field(
        None, ge=0, le=65535, description="empty: 8080 aggregator and all-in-one, 9101 ingest, 9102 inference; 0: any"
    )
    requests_per_s: float = Field(
        50,
        ge=0,
        le=10_000,
        description="a client that asks more often, on average, is told to wait; 0: nobody is",
    )
    token: Annotated[SecretStr, AfterValidator(_token)] = Field(
        SecretStr(""),
        description="who asks for /api or /metrics must send it as `Authorization: Bearer`; empty: whoever reaches them may",
    )


class Settings(BaseSettings):
    """All of them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    attributes: Annotated[tuple[Attribute, ...], AfterValidator(in_order)] = Field(
        ATTRIBUTES,
        description="what is computed, published and kept, the same for every service; leave ethnicity out where the law or the"
        " purpose says so. A camera may have fewer (cameras.yaml). None: visitors are counted, no face leaves ingest",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severity that is logged")
    drain_s: float = Field(
        20,
        ge=1,
        le=600,
        description="how long a service may take to finish when it is told to end; then it goes, and others repeat the rest",
    )
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    ingest: IngestSettings = IngestSettings()
    inference: InferenceSettings = InferenceSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
    http: HttpSettings = HttpSettings()

    @cached_property
    def windows_s(self) -> dict[str, int]:
        """Seconds of each rolling window, by its name."""
        return {name: parse_window(name) for name in self.aggregator.windows}


class SettingRow(BaseModel):
    """One setting, for the documentation."""

    variable: str
    default: str
    description: str


def documented() -> Iterator[SettingRow]:
    """List every setting as an environment variable."""
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if isinstance(default, _Section):
            for inner, inner_field in type(default).model_fields.items():
                value = inner_field.get_default()
                shown = _shown(value)
                yield SettingRow(
                    variable=f"{PREFIX}{name}__{inner}".upper(),
                    default=shown,
                    description=inner_field.description or "",
                )
        else:
            yield SettingRow(
                variable=f"{PREFIX}{name}".upper(), default=_shown(default), description=field.description or ""
            )


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    if value == DEFAULT_MODEL:
        return "models/default"
    return str(value)


def load_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings of this process. Raises ConfigError that lists every problem; values are not quoted.

    *overrides* are sections or fields that the caller fixes, as keyword arguments of Settings.
    """
    environment = os.environ if environment is None else environment
    problems = list(_unknown_variables(environment))
    settings = None
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        problems += [describe_problem(_variable_of(detail), detail) for detail in error.errors(include_url=False)]
    except ValueError as error:  # pydantic-settings: a value that is no JSON where a list is wanted
        problems.append(f'{redact(str(error))}; write lists as JSON, such as ["1m", "15m"]')
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    known = {row.variable for row in documented()}
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
            hint = f"did you mean {near[0]}?" if near else "docs/configuration.md lists them all"
            yield f"{name}: there is no such setting; {hint}"


def _variable_of(detail: ErrorDetails) -> str:
    return PREFIX + "__".join(str(part) for part in detail["loc"] if isinstance(part, str)).upper()


def describe_problem(where: str, detail: ErrorDetails) -> str:
    """Say in one line what pydantic found wrong at *where*, without the value: it may be a secret."""
    text = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        text = "there is no such key"
    return redact(f"{where}: {text[:1].lower()}{text[1:]}")


def known_names(names: Iterable[str], wrong: str) -> str:
    """Suggest the nearest of *names* for a *wrong* one, or list them."""
    names = sorted(names)
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean '{near[0]}'?" if near else "known are " + ", ".join(names)
