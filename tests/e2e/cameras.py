"""Cameras in processes of their own, which can be killed, frozen and started again: our RTSP server, and GStreamer's.

python tests/e2e/cameras.py PORT PATH=FILM[,user:password][,xSPEED] ...
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.rtsp_server import RtspServer
from tests.servers import free_port, listens, wait_until

ROOT = Path(__file__).parent.parent.parent

GSTREAMER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(); server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
auth = GstRtspServer.RTSPAuth()
for item in sys.argv[2:]:
    path, rest = item.split("=", 1)
    film, *more = rest.split(",")
    factory = GstRtspServer.RTSPMediaFactory(); factory.set_shared(True)
    source, before = f'filesrc location="{film}"', ""
    if not film.endswith("264"):  # a bare stream has no times: GStreamer sends one and the same for ever
        source += " ! qtdemux"
    if "+" in film:  # one after the other, in one stream
        source = "concat name=one"
        before = " ".join(f'filesrc location="{part}" ! qtdemux ! h264parse ! one.' for part in film.split("+")) + " "
    for word in more:
        if ":" in word:  # who may look at it
            user, password = word.split(":")
            token = GstRtspServer.RTSPToken(); token.set_string("media.factory.role", user)
            auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
            rights = GstRtspServer.RTSPPermissions(); rights.add_role(user)
            for right in ("access", "construct"):
                rights.add_permission_for_role(user, "media.factory." + right, True)
            factory.set_permissions(rights)
            server.set_auth(auth)
        else:  # a camera out of order: so many times 25 frames a second
            source = f"videotestsrc is-live=true ! video/x-raw,format=I420,width=160,height=120,framerate={25 * int(word[1:])}/1"
            source, before = source + " ! jpegenc", ""
    pay = "rtpjpegpay" if "jpegenc" in source else "h264parse config-interval=-1 ! rtph264pay"
    factory.set_launch(f"( {before}{source} ! {pay} name=pay0 pt=96 )")
    server.get_mount_points().add_factory("/" + path, factory)
server.attach(None)
GLib.MainLoop().run()
"""


def gstreamer_missing() -> str:
    """Say what GStreamer's RTSP server lacks here; empty where it can be run."""
    python = "/usr/bin/python3"
    if not shutil.which(python):
        return "no system Python"
    probe = 'import gi; gi.require_version("GstRtspServer", "1.0"); from gi.repository import Gst, GstRtspServer; Gst.init(None);'
    probe += 'raise SystemExit(not all(Gst.ElementFactory.find(n) for n in ("qtdemux", "h264parse", "rtph264pay")))'
    found = subprocess.run([python, "-c", probe], capture_output=True, check=False)
    return "" if found.returncode == 0 else "no gst-rtsp-server (gir1.2-gst-rtsp-server-1.0, plugins good and bad)"


class Cameras:
    """One server process with some cameras."""

    def __init__(self, *items: str, gstreamer: bool = False) -> None:
        self.port = free_port()
        self._items = items
        self._gstreamer = gstreamer
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, path: str, login: str = "") -> str:
        """Give a camera's address."""
        return f"rtsp://{login}127.0.0.1:{self.port}/{path}"

    def start(self) -> Self:
        """Start, at the same port as before, and wait until it answers."""
        ours: Sequence[str] = (sys.executable, "-m", "tests.e2e.cameras")
        command = ("/usr/bin/python3", "-c", GSTREAMER) if self._gstreamer else ours
        self._process = subprocess.Popen(
            [*command, str(self.port), *self._items], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: listens(self.port), timeout_s=30, what="a server of cameras")
        if not self._gstreamer:  # it listens before it has read its films, and says 404 meanwhile
            for item in self._items:
                path = item.partition("=")[0]
                wait_until(partial(self._serves, path), timeout_s=30, what=f"the camera {path}")
        return self

    def _serves(self, path: str) -> bool:
        """Tell whether there is a camera at *path*, even one that asks for a password."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as client:
            client.sendall(f"DESCRIBE {self.url(path)} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
            return client.recv(64).split(b" ")[1:2] in ([b"200"], [b"401"])

    def kill(self) -> None:
        """Kill it as the kernel would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let it stand still, with its connections open."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def main(port: str, *items: str) -> None:
    """Serve until killed."""
    with RtspServer(port=int(port)) as server:
        for item in items:
            path, _, rest = item.partition("=")
            film, *more = rest.split(",")
            login = next((word for word in more if ":" in word), ":")
            speed = next((float(word[1:]) for word in more if word.startswith("x")), 1.0)
            username, _, password = login.partition(":")
            server.add(path, Path(film), username=username, password=password, speed=speed)
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
