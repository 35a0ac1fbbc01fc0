"""Motion JPEG over HTTP, as cheap cameras and encoders send it: frames in real time, failures under their own names."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise

import cv2
import numpy as np
import pytest
from pydantic import SecretStr

from ingest.av_source import AvSource
from pipeline.cameras import Camera
from pipeline.errors import SourceLost, SourceNotFound, SourceRefused

PASSWORD = "hunter2-s3cr3t"


class MotionJpeg(BaseHTTPRequestHandler):
    """Sends grey pictures that grow brighter, ten a second; asks for a password on /private; ends after three on /short."""

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.split("?")[0]
        asked = base64.b64encode(f"viewer:{PASSWORD}".encode()).decode()
        if path not in {"/mjpg", "/private", "/short"}:
            self.send_error(404)
        elif path == "/private" and self.headers.get("Authorization") != f"Basic {asked}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(OSError):  # the viewer has left
                for number in range(3 if path == "/short" else 100):
                    picture = np.full((120, 160, 3), 20 + number * 2, np.uint8)
                    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
                    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
                    self.wfile.write(head + jpeg + b"\r\n")
                    time.sleep(0.1)  # this is the camera's frame rate, not a wait

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serve; gives host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), MotionJpeg) as serving:
        serving.daemon_threads = True
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join(10)


def opened(address: str) -> AvSource:
    """Connect."""
    return AvSource(Camera(id="shop", url=SecretStr(address)), open_timeout_s=5, read_timeout_s=5)


def test_frames_come_in_order_with_the_time_at_which_they_came(server: str) -> None:
    """Motion JPEG has no clock of its own: event time is when it arrived."""
    with closing(opened(f"http://{server}/mjpg?user=viewer&password={PASSWORD}")) as source:
        assert source.live
        frames = [(frame.captured_at, float(frame.image().mean())) for frame in islice(source.frames(), 8)]
    # Those that came while the stream was being opened share a time.
    assert all(later[0] >= earlier[0] for earlier, later in pairwise(frames))
    assert frames[-1][0] > frames[0][0]
    assert all(later[1] > earlier[1] for earlier, later in pairwise(frames))
    assert abs(frames[-1][0] - time.time()) < 30


def test_a_password_is_taken_and_a_wrong_one_is_refused(server: str) -> None:
    """By name, and without the password in the text."""
    with closing(opened(f"http://viewer:{PASSWORD}@{server}/private")) as source:
        assert next(iter(source.frames())).image().shape == (120, 160, 3)
    with pytest.raises(SourceRefused) as refused:
        opened(f"http://viewer:{PASSWORD}-wrong@{server}/private")
    assert PASSWORD not in str(refused.value)


def test_a_path_that_is_not_there_and_a_stream_that_ends_are_told_apart(server: str) -> None:
    """The one wants another address, the other is tried again."""
    with pytest.raises(SourceNotFound):
        opened(f"http://{server}/nothing")
    with closing(opened(f"http://{server}/short")) as source, pytest.raises(SourceLost, match="shop"):
        list(source.frames())
