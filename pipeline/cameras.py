"""cameras.yaml: which cameras there are. Everything wrong with it is said at once, by line of thought: camera and key.

site: museum                # optional; 'default'
cameras:
  - id: entrance            # letters, digits, . _ -
    url: rtsp://viewer:${ENTRANCE_PASSWORD}@10.0.0.11:554/stream2
    site: museum-north      # optional; the file's
    detect_fps: 5           # optional; the setting's
    max_side_px: 960        # optional; the setting's
    stall_timeout_s: 10     # optional; the setting's
    decode: keyframes       # optional; 'all'. The low-power mode: only key frames are decoded
    hwaccel: cuda           # optional; the setting's
    realtime: true          # optional; a file is played at its own pace, again and again, as a camera would send it
    options: {buffer_size: "1048576"}   # optional; handed to FFmpeg
    attributes: [age, gender]           # optional; what is said of this camera's visitors; the deployment's, which is the most
    paused: being repaired              # optional; why nobody looks: the stream is let go of
    # who counts as a visitor, in relative coordinates: [0, 0] is the picture's top left, [1, 1] its bottom right
    zone: [[0.1, 0.3], [0.9, 0.3], [0.9, 1], [0.1, 1]]                            # optional; who is in there
    line: {from: [0, 0.6], to: [1, 0.6], inside: [0.5, 1], counts: in}            # optional; who crosses it: in, out, both
    min_dwell_s: 2                                                                # optional; for that long
    exclude: [[[0, 0], [0.2, 0], [0.2, 0.4], [0, 0.4]]]                           # optional; a poster, a screen
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.attributes import ATTRIBUTES, Attribute, in_order
from pipeline.errors import ConfigError
from pipeline.redaction import redact, redact_parameters
from pipeline.settings import SCHEMES, describe_problem, known_names

_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
_SECRET_OPTION: Final = re.compile(r"pass|pwd|token|secret|key|auth|cookie|headers", re.IGNORECASE)
_LEADING_ELSEWHERE: Final = frozenset(
    {
        "protocol_whitelist",
        "protocol_blacklist",
        "format_whitelist",
        "http_proxy",
        "max_redirects",
        "location",
        "localaddr",
    }
)
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_NAME_RULE: Final = "use 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit"


def _name(value: str) -> str:
    if not re.match(_NAME, value):
        raise ValueError(_NAME_RULE)
    return value


Unit = Annotated[float, Field(ge=0, le=1)]
Point = tuple[Unit, Unit]
"""(x, y) in relative coordinates: (0, 0) is the picture's top left, (1, 1) its bottom right."""


def _polygon(points: tuple[Point, ...]) -> tuple[Point, ...]:
    area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, (*points[1:], *points[:1]), strict=True)) / 2
    if len(points) < 3 or abs(area) < 1e-4:
        raise ValueError("needs three corners or more around some area: [[0.1, 0.2], [0.9, 0.2], [0.5, 0.9]]")
    return points


Polygon = Annotated[tuple[Point, ...], AfterValidator(_polygon)]


class Line(BaseModel):
    """A line that people cross, and which side of it is inside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Point = Field(alias="from")
    end: Point = Field(alias="to")
    inside: Point
    counts: Literal["in", "out", "both"] = "in"

    @model_validator(mode="after")
    def _has_two_sides(self) -> Self:
        (x1, y1), (x2, y2), (x, y) = self.start, self.end, self.inside
        if abs(x2 - x1) + abs(y2 - y1) < 0.01:
            raise ValueError("'from' and 'to' are the same place; a line needs two")
        if abs((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)) < 1e-3:
            raise ValueError("'inside' lies on the line; name a point on its inner side")
        return self


class Camera(BaseModel):
    """One camera, stream or file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    url: SecretStr
    site: str = "default"
    detect_fps: Annotated[float, Field(gt=0, le=60)] | None = None
    max_side_px: Annotated[int, Field(ge=160, le=3840)] | None = None
    stall_timeout_s: Annotated[float, Field(gt=0, le=120)] | None = None
    decode: Literal["all", "keyframes"] = "all"
    hwaccel: str | None = None
    realtime: bool = False
    """A file is played at its own pace, again and again, as a camera would send it; else it is read as fast as it goes, once."""
    options: dict[str, str] = {}
    attributes: Annotated[tuple[Attribute, ...], AfterValidator(in_order)] = ATTRIBUTES
    zone: Polygon | None = None
    line: Line | None = None
    min_dwell_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    exclude: tuple[Polygon, ...] = ()
    paused: Annotated[str, Field(max_length=300)] = ""  # why nobody looks; empty: somebody does

    @field_validator("options")
    @classmethod
    def _kept_in(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := sorted(_LEADING_ELSEWHERE.intersection(value)):
            raise ValueError(f"{', '.join(wrong)} would lead elsewhere than to the camera, and cannot be set")
        return value

    _id = field_validator("id")(_name)
    _site = field_validator("site")(_name)

    @field_validator("url")
    @classmethod
    def _address(cls, value: SecretStr) -> SecretStr:
        check_address(value.get_secret_value())
        return value

    @property
    def address(self) -> str:
        """Where it is, without credentials: for logs, metrics, pages."""
        return redact(self.url.get_secret_value())

    @property
    def path(self) -> Path | None:
        """Its file, where it is one."""
        return file_of(self.url.get_secret_value())

    @property
    def live(self) -> bool:
        """True where frames come at their own pace."""
        return self.path is None or self.realtime


def file_of(address: str) -> Path | None:
    """Give the path that *address* names, or None for a network address."""
    if address.startswith("file://"):
        return Path(urlsplit(address).path)
    return None if "://" in address else Path(address)


def check_address(address: str) -> None:
    """Raise ValueError that says what is wrong with a camera's address; never with its credentials in it."""
    if not address.strip():
        raise ValueError("is empty; write rtsp://HOST/PATH, http://HOST/PATH or a file's path")
    if "://" not in address:
        return
    scheme = address.split("://", 1)[0].lower()
    if scheme not in SCHEMES:
        raise ValueError(f"scheme '{scheme}' is not one of {', '.join(SCHEMES)}; {known_names(SCHEMES, scheme)}")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a well-formed address; write / ? # @ : in a password as %2F %3F %23 %40 %3A") from None
    if scheme != "file" and not host:
        raise ValueError("names no host; write rtsp://HOST/PATH")


def load_cameras(path: Path, environment: Mapping[str, str] | None = None) -> tuple[Camera, ...]:
    """Read a camera file. Raises ConfigError that lists every problem in it."""
    return parse_cameras(read_camera_file(path), str(path), os.environ if environment is None else environment)


def read_camera_file(path: Path) -> Any:
    """Read a camera file as YAML. Raises ConfigError."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; copy cameras.example.yaml and fill it in") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable ({type(error).__name__}); it must be a text file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or 'malformed'})") from None


def entries_of(path: Path) -> list[dict[str, Any]]:
    """Read a camera file's entries as they are written, the file's site with each. Raises ConfigError."""
    loaded = read_camera_file(path)
    parse_cameras(loaded, str(path), _Anything())
    site = loaded.get("site", "default")
    return [{"id": entry["id"], "site": site, **entry} for entry in loaded["cameras"]]


class _Anything(dict[str, str]):
    """An environment in which every name is set: secrets are set where cameras are run."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> str:
        return "x"


def references(entry: Mapping[str, Any]) -> list[str]:
    """List the names that a camera's url and options refer to, as ${NAME}."""
    options = entry.get("options")
    texts = [entry.get("url"), *(options.values() if isinstance(options, dict) else ())]
    return [name for text in texts if isinstance(text, str) for name in _VARIABLE.findall(text)]


def secret_of(name: str, environment: Mapping[str, str]) -> str | None:
    """Give what ${NAME} stands for: the variable NAME, or the content of the file that the variable NAME_FILE names."""
    if name in environment:
        return environment[name]
    if file := environment.get(f"{name}_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
    return None


def filled(entry: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Put what they stand for in the place of the references of *entry*. Raises ConfigError for what is not set."""
    found = {name: secret_of(name, environment) for name in references(entry)}
    missing = sorted(name for name, value in found.items() if value is None)
    if missing:
        raise ConfigError(
            f"${{{name}}} is not set; export it before you start, or name its file in {name}_FILE" for name in missing
        )

    def fill(text: Any) -> Any:
        return _VARIABLE.sub(lambda match: found[match[1]] or "", text) if isinstance(text, str) else text

    done = {str(key): value for key, value in entry.items()}
    done["url"] = fill(done.get("url"))
    if isinstance(done.get("options"), dict):
        done["options"] = {key: fill(value) for key, value in done["options"].items()}
    return {key: value for key, value in done.items() if key in entry}


def parse_cameras(loaded: Any, source: str, environment: Mapping[str, str]) -> tuple[Camera, ...]:
    """Turn a loaded camera file into cameras. Raises ConfigError that lists every problem; *source* names the file."""
    if not isinstance(loaded, dict) or not isinstance(loaded.get("cameras"), list) or not loaded["cameras"]:
        raise ConfigError(f"{source}: needs a list 'cameras' with at least one camera, each with 'id' and 'url'")
    problems = [
        f"{source}: '{key}': there is no such key; {known_names(('site', 'cameras'), str(key))}"
        for key in loaded
        if key not in {"site", "cameras"}
    ]
    cameras: list[Camera] = []
    for number, entry in enumerate(loaded["cameras"], start=1):
        if not isinstance(entry, dict):
            problems.append(f"{source}: camera {number}: must be a mapping with 'id' and 'url'")
            continue
        where = f"{source}: camera {number} ({entry.get('id', 'no id')})"
        try:
            cameras.append(camera_of({"site": loaded.get("site", "default"), **entry}, where, environment))
        except ConfigError as error:
            problems += error.problems
    problems += repeated_ids((camera.id for camera in cameras), source)
    if problems:
        raise ConfigError(problems)
    return tuple(cameras)


def repeated_ids(ids: Iterable[str], source: str) -> list[str]:
    """Say which camera ids are used more than once."""
    return [
        f"{source}: camera id '{name}' is used more than once; ids must differ"
        for name, count in Counter(ids).items()
        if count > 1
    ]


def camera_of(entry: Mapping[str, Any], where: str, environment: Mapping[str, str]) -> Camera:
    """Make the camera that *entry* describes. Raises ConfigError that lists every problem; *where* says whose."""
    try:
        return Camera.model_validate(filled(entry, environment))
    except ConfigError as error:
        raise ConfigError(f"{where}: {problem}" for problem in error.problems) from None
    except ValidationError as error:
        raise ConfigError(_problem(where, detail) for detail in error.errors(include_url=False)) from None


def clear_secrets(entry: Mapping[str, Any]) -> list[str]:
    """Say what in *entry* is a secret written out, where a reference is wanted: it would be kept in clear."""
    problems = []
    url = _VARIABLE.sub("", str(entry.get("url", "")))
    try:
        password = urlsplit(url).password
    except ValueError:
        password = ""
    if password or redact_parameters(url) != url:
        problems.append("'url' has a password in it; write ${NAME} in its place and set NAME where the workers run")
    options = entry.get("options")
    for key, value in (options if isinstance(options, dict) else {}).items():
        if _SECRET_OPTION.search(str(key)) and _VARIABLE.sub("", str(value)).strip():
            problems.append(f"'options.{key}' may hold a secret; write ${{NAME}} in its place")
    return problems


def _problem(where: str, detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    said = describe_problem(f"{where}: '{key}'", detail)
    if detail["type"] == "extra_forbidden":
        said += f"; {known_names(Camera.model_fields, key)}"
    return said


def cameras_of_sources(sources: list[str], *, realtime: bool = False) -> tuple[Camera, ...]:
    """Name a camera for each address or file given on the command line. Raises ConfigError with every problem.

    *realtime* has files played at their own pace.
    """
    problems, cameras, used = [], [], set[str]()
    for number, source in enumerate(sources, start=1):
        try:
            check_address(source)
        except ValueError as error:
            problems.append(f"--source {redact(source)}: {error}")
            continue
        path = file_of(source)
        stem = path.stem if path else urlsplit(source).path.strip("/").replace("/", "-")
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", stem).lstrip("-._")[:48] or f"camera-{number}"
        name = name if name not in used else f"{name}-{number}"
        used.add(name)
        cameras.append(Camera(id=name, url=SecretStr(source), realtime=realtime and path is not None))
    if problems:
        raise ConfigError(problems)
    return tuple(cameras)


def check_files(cameras: tuple[Camera, ...]) -> None:
    """Raise ConfigError that lists every camera whose file is not there: waiting brings no file."""
    problems = [
        f"camera {camera.id}: {camera.path}: {'is a folder' if camera.path.is_dir() else 'no such file'}; name a video file"
        for camera in cameras
        if camera.path is not None and not camera.path.is_file()
    ]
    if problems:
        raise ConfigError(problems)
