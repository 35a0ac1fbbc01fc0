"""cameras.yaml while it is in use: what has changed in it, without a restart."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from pipeline.cameras import Camera, load_cameras
from pipeline.errors import ConfigError

log = structlog.get_logger()

CHECK_S: Final = 1.0
_SECRETS_S: Final = 10.0  # how often it is read though its text is the same: a secret file may have changed


class CameraFile:
    """A camera file that is looked at again and again. A version that is wrong changes nothing, and is said once."""

    def __init__(self, path: Path, environment: Mapping[str, str] | None = None) -> None:
        """Read it. Raises ConfigError that lists every problem."""
        self.path = path
        self.problem = ""  # with the version that is there now
        self._environment = environment
        self._text = self._read()
        self.cameras = load_cameras(path, environment)
        self._checked = self._loaded = time.monotonic()

    def changed(self) -> tuple[Camera, ...] | None:
        """Give the cameras where they are others than before, else None. Looks at the file once a second at most."""
        now = time.monotonic()
        if now - self._checked < CHECK_S:
            return None
        self._checked = now
        text = self._read()
        if text == self._text and (now - self._loaded < _SECRETS_S or self.problem):
            return None
        self._text, self._loaded = text, now
        try:
            cameras = load_cameras(self.path, os.environ if self._environment is None else self._environment)
        except ConfigError as error:
            self.problem = "; ".join(error.problems)
            log.error("camera_file_refused", path=str(self.path), problems=list(error.problems), kept=len(self.cameras))  # noqa: TRY400
            return None
        self.problem = ""
        if cameras == self.cameras:
            return None
        self.cameras = cameras
        return cameras

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""
