"""`demographics demo`: the product on two cameras that need no hardware, and what it should count beside what it counts."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from demo.clip import Clip
from demo.composer import CAST_FOLDER, compose, load_cast
from demo.expectation import expected_visitors
from demo.rtsp_server import RtspServer
from pipeline.cameras import Camera
from pipeline.console import Screen
from pipeline.errors import ConfigError
from pipeline.local import DEFAULT_PORT, LocalRun, watch
from pipeline.report import tally_table
from pipeline.settings import Settings

COMPOSER_VERSION: Final = 1  # moves whenever the films would come out differently, so that kept ones are made anew
SITE: Final = "demo"
USER: Final = "viewer"
PASSWORD: Final = "demo-camera"  # noqa: S105  of a camera that shows a cartoon, on loopback
LEAST_SHOWN_S: Final = 0.8  # in view for less, nobody is confirmed as a visitor


class DemoCamera(NamedTuple):
    """One of the two."""

    name: str
    view: str
    people: int
    seconds: float
    seed: int


CAMERAS: Final = (
    DemoCamera("entrance", "entrance", 8, 30.0, 3),
    DemoCamera("hall", "hall", 8, 36.0, 11),
)


def cache_folder() -> Path:
    """Give the folder that keeps the composed films between demos."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    digest = sha256((CAST_FOLDER / "cast.json").read_bytes() + repr(CAMERAS).encode() + bytes([COMPOSER_VERSION]))
    return Path(base) / "demographics" / f"demo-{digest.hexdigest()[:12]}"


def demo_clips(folder: Path, progress: Callable[[str, float], None]) -> dict[str, Clip]:
    """Give the film of each demo camera, composed where *folder* has none yet; *progress* gets (camera, share done).

    Raises ConfigError where *folder* cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be made ({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    cast = load_cast()

    def clip_of(camera: DemoCamera) -> Clip:
        path = folder / f"{camera.name}.mp4"
        try:
            return Clip.load(path)
        except ConfigError:
            pass  # not composed yet, or interrupted
        part = folder / f"{camera.name}.{os.getpid()}.mp4"
        made = compose(
            part, cast, view=camera.view, people=camera.people, seconds=camera.seconds, seed=camera.seed,
            progress=lambda share: progress(camera.name, share),
        )  # fmt: skip
        # The truth last: a film without it is composed again.
        part.rename(path)
        part.with_suffix(".json").rename(path.with_suffix(".json"))
        return Clip(path, made.seconds, made.fps, made.size, made.passages)

    with ThreadPoolExecutor(len(CAMERAS)) as pool:
        return dict(zip((camera.name for camera in CAMERAS), pool.map(clip_of, CAMERAS), strict=True))


def composed(console: Console) -> dict[str, Clip]:
    """Compose the films, or take the kept ones, with a progress bar."""
    with Progress(
        TextColumn("          composing the film of camera {task.description}"),
        BarColumn(),
        console=console,
        transient=True,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, share: float) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=1.0)
            bars.update(tasks[name], completed=share)

        return demo_clips(cache_folder(), show)


def run_demo(
    settings: Settings, stop: threading.Event, *, seconds: float = 0, port: int | None = None
) -> dict[str, Any]:
    """Run until *stop*, or for *seconds*; gives the report with `expected_visitors` beside `visitors`. Raises ConfigError."""
    screen = Screen("demographics demo: two RTSP cameras, everything in this process; nothing to set up")
    screen.step("composing two films from sixteen faces that belong to nobody")
    clips = composed(screen.console)
    with RtspServer() as server:
        for name, clip in clips.items():
            # The film begins with the first viewer, so that nobody has walked by before anybody looked.
            server.add(name, clip.path, username=USER, password=PASSWORD, start="on_play")
        cameras = tuple(
            Camera(id=name, url=SecretStr(server.url(name, with_credentials=True)), site=SITE) for name in clips
        )
        screen.step("cameras " + "  ".join(server.url(name) for name in clips))
        with _local_run(settings, cameras, port, screen) as local:
            local.start()
            screen.step(f"page {local.http.url}/   metrics {local.http.url}/metrics   (Ctrl-C ends)")
            watch(local, screen, stop, until=time.monotonic() + seconds if seconds else float("inf"))
            screen.step("ending: counting who is still in view")
            document = local.finish()
            document["url"] = local.http.url
        document["expected_visitors"] = sum(
            expected_visitors(
                clip,
                session.start_s,
                server.position_s(name) if session.stop_s is None else session.stop_s,
                least_s=LEAST_SHOWN_S,
            )
            for name, clip in clips.items()
            for session in server.sessions(name)
        )
    screen.console.print(tally_table("counted", {"visitors": document}))
    screen.step(
        f"{document['visitors']} visitors counted, {document['expected_visitors']} have walked by. "
        "Next: your own cameras, `demographics run cameras.yaml` (see README.md)"
    )
    return document


def _local_run(settings: Settings, cameras: tuple[Camera, ...], port: int | None, screen: Screen) -> LocalRun:
    """Take the usual port, or any where that is taken: a demo should not fail for it."""
    if port is not None or settings.http.port is not None:
        return LocalRun(settings, cameras, port=port, progress=screen.step)
    return LocalRun(settings, cameras, port=_free_or_any(settings.http.host), progress=screen.step)


def _free_or_any(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, DEFAULT_PORT))
        except OSError:
            return 0
    return DEFAULT_PORT
