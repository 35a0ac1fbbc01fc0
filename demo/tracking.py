"""How well tracks follow people: films with their truth, watched as a camera is, and scored.

    python -m demo.tracking                       every hard scene of scenes.py, as fast as the machine allows
    python -m demo.tracking twenty crossing       some of them
    python -m demo.tracking FILM.mp4 ...          films with their truth beside them (see truth.py)
    python -m demo.tracking --rtsp ...            in real time, by a real RTSP server and connection

Each film is played twice without a break, so that whoever leaves at its end must not be taken for who comes at its start.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from demo.composer import load_cast
from demo.rtsp_server import RtspServer
from demo.scenes import SCENES, draw_scene
from demo.truth import Score, Sighting, Truth, score
from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.detection import open_detection
from ingest.outbox import SharedProducer
from ingest.source import Frame, Source
from ingest.step import Look
from pipeline.bus import Headers
from pipeline.cameras import Camera
from pipeline.errors import PipelineError
from pipeline.manifest import load_manifest
from pipeline.messages import TrackEnded, decode
from pipeline.settings import IngestSettings, Settings
from pipeline.telemetry import Telemetry

PLAYS: Final = 2
SHIFT_S: Final = 3.0
AT_ONCE: Final = {"probesize": "32", "analyzeduration": "1", "fpsprobesize": "0"}


class Listener:
    """A bus that keeps only who was counted."""

    def __init__(self) -> None:
        self.counted: list[TrackEnded] = []

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:  # noqa: ARG002
        """Take a record."""
        message = decode(value, headers)
        if isinstance(message, TrackEnded) and message.visitor:
            self.counted.append(message)

    def flush(self, timeout_s: float) -> None:
        """Return: everything has arrived."""

    def close(self) -> None:
        """Let go."""


class TwiceInARow:
    """A film as a source that begins anew without a break."""

    live = False

    def __init__(self, camera: Camera, seconds: float) -> None:
        self._camera = camera
        self._seconds = seconds

    def frames(self) -> Iterator[Frame]:
        """Give the film's frames on one timeline, which starts at zero."""
        for play in range(PLAYS):
            film = AvSource(self._camera, open_timeout_s=10, read_timeout_s=10)
            first: float | None = None
            for frame in film.frames():
                first = frame.captured_at if first is None else first
                yield replace(frame, captured_at=play * self._seconds + frame.captured_at - first)

    def close(self) -> None:
        """Nothing is held."""


class _Marked:
    """A source that remembers when its first frame was taken: there the film begins."""

    def __init__(self, source: Source) -> None:
        self.live = source.live
        self.first_at: float | None = None
        self._source = source

    def frames(self) -> Iterator[Frame]:
        """Give the source's frames."""
        for frame in self._source.frames():
            self.first_at = frame.captured_at if self.first_at is None else self.first_at
            yield frame

    def close(self) -> None:
        """Let go."""
        self._source.close()


class Watched:
    """One film, watched by a camera loop as any camera is, and who was seen where."""

    def __init__(self, film: Path, truth: Truth, settings: Settings, **camera: Any) -> None:
        self.film, self.truth = film, truth
        self.listener = Listener()
        self.sightings: list[tuple[int, float, tuple[float, float, float, float]]] = []
        self._settings, self._camera = settings, camera
        self._marked: _Marked | None = None

    def _note(self, at: float, look: Look) -> None:
        self.sightings += [(track.number, at, track.face.xyxy) for track in look.seen]

    def _loop(self, camera: Camera, connect: Any) -> CameraLoop:
        ingest: IngestSettings = self._settings.ingest
        return CameraLoop(
            camera,
            settings=ingest,
            recipe=load_manifest(self._settings.inference.model).crop,
            detector=lambda camera: open_detection(ingest.detector, ingest.detector_model)(
                camera.max_side_px or ingest.max_side_px
            ),
            connect=connect,
            producer=SharedProducer(self.listener),
            telemetry=Telemetry(("ingest",)),
            until_end=True,
            on_look=self._note,
        )

    def from_file(self) -> Score:
        """Watch the film twice in a row, as fast as the machine allows."""
        camera = Camera(id="film", url=SecretStr(str(self.film)), **self._camera)
        self._loop(camera, lambda camera: TwiceInARow(camera, self.truth.seconds)).run(threading.Event())
        return self._score(0.0)

    def by_rtsp(self) -> Score:
        """Watch the film twice in a row in real time, by a real connection."""
        with RtspServer() as server:
            server.add("film", self.film, start="on_play")
            camera = Camera(id="film", url=SecretStr(server.url("film")), options=AT_ONCE, **self._camera)

            def connect(camera: Camera) -> Source:
                self._marked = _Marked(AvSource(camera, open_timeout_s=10, read_timeout_s=10))
                return self._marked

            stop = threading.Event()
            thread = threading.Thread(target=self._loop(camera, connect).run, args=(stop,), daemon=True)
            thread.start()
            while server.position_s("film") < PLAYS * self.truth.seconds:
                stop.wait(0.1)
            stop.set()
            thread.join(30)
        assert self._marked is not None
        first_at = self._marked.first_at or 0.0
        # FFmpeg passes over the pictures that it probes a stream with: one shift for all, and the truth says which.
        shifts = (first_at - frames / self.truth.fps for frames in range(int(SHIFT_S * self.truth.fps)))
        return max((self._score(shift) for shift in shifts), key=lambda figures: (-figures.nobody, figures.purity))

    def _score(self, first_at: float) -> Score:
        counted = {ended.track_id & 0xFFFFF for ended in self.listener.counted}
        looks = (Sighting(number, at - first_at, xyxy) for number, at, xyxy in self.sightings)
        return score(looks, counted, self.truth, plays=PLAYS)


def measure(name: str, folder: Path, settings: Settings, *, rtsp: bool = False, **camera: Any) -> Score:
    """Score one scene by name, drawn into *folder*, or a film by its path. Raises ConfigError where there is no truth."""
    film = Path(name)
    if film.suffix:
        truth = Truth.load(film)
    else:
        film = folder / f"{name}.mp4"
        truth = Truth.load(film) if film.is_file() else draw_scene(name, film, load_cast())
        camera = {**SCENES[name].camera, **{key: value for key, value in camera.items() if value is not None}}
    watched = Watched(film, truth, settings, **camera)
    return watched.by_rtsp() if rtsp else watched.from_file()


def table(scores: dict[str, Score]) -> Table:
    """Draw the figures."""
    drawn = Table("scene", "people", "visitors", "off", "purity", "tracks a person", "merged", "of nobody")
    for name, figures in scores.items():
        drawn.add_row(
            Path(name).stem, str(figures.people), str(figures.visitors), f"{figures.count_error:.1%}", f"{figures.purity:.3f}",
            f"{figures.tracks_per_person:.3f}", str(figures.merged), str(figures.nobody),
        )  # fmt: skip
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("films", nargs="*", default=list(SCENES), help=f"of {', '.join(SCENES)}, or films")
    parser.add_argument("--rtsp", action="store_true", help="in real time, by a real RTSP server")
    parser.add_argument("--detect-fps", type=float, default=None)
    parser.add_argument("--max-side-px", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where drawn scenes are kept")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    settings = Settings()
    scores: dict[str, Score] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="demographics-scenes-") as made:
            folder = options.folder or Path(made)
            folder.mkdir(parents=True, exist_ok=True)
            for name in options.films:
                scores[name] = measure(
                    name, folder, settings, rtsp=options.rtsp, detect_fps=options.detect_fps, max_side_px=options.max_side_px
                )  # fmt: skip
                sys.stderr.write(f"{name}: {scores[name].visitors} of {scores[name].people}\n")
    except PipelineError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.json:
        sys.stdout.write(msgspec.json.encode({n: s._asdict() for n, s in scores.items()}).decode() + "\n")
    else:
        Console().print(table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
