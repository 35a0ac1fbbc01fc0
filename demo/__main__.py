"""`python -m demo`: the demo cameras on their own, for a pipeline that runs elsewhere.

python -m demo --serve 8554                      our RTSP server on that port
python -m demo --publish rtsp://mediamtx:8554    the films sent to another RTSP server, as ffmpeg would
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

import av
import av.error
from rich.console import Console

from demo.clip import Clip
from demo.command import PASSWORD, USER, composed
from demo.rtsp_server import RtspServer
from pipeline.errors import PipelineError
from pipeline.signals import stop_on_signals


def publish(clip: Clip, address: str, stop: threading.Event) -> None:
    """Send *clip* to the RTSP server at *address* in real time, again and again until *stop*; reconnects for ever."""
    while not stop.is_set():
        try:
            _publish_once(clip.path, address, stop)
        except (av.error.FFmpegError, OSError) as error:
            sys.stderr.write(f"{address}: {type(error).__name__}; trying again\n")
            stop.wait(2.0)


def _publish_once(path: Path, address: str, stop: threading.Event) -> None:
    with av.open(address, "w", format="rtsp", options={"rtsp_transport": "tcp"}) as out:
        started, played = time.monotonic(), 0
        sent = None
        while not stop.is_set():
            with av.open(str(path)) as film:
                source = film.streams.video[0]
                sent = sent or out.add_stream_from_template(source)
                length = 0
                for packet in film.demux(source):
                    if packet.dts is None or packet.pts is None or stop.is_set():
                        continue
                    assert source.time_base is not None
                    length = max(length, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts = packet.pts + played, packet.dts + played
                    stop.wait(max(0.0, float(packet.dts * source.time_base) - (time.monotonic() - started)))
                    packet.stream = sent
                    out.mux(packet)
                played += length


def main() -> None:
    """Serve or publish until a signal."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--serve", type=int, metavar="PORT", help="serve the cameras on this port of loopback")
    how.add_argument("--publish", metavar="URL", help="publish the cameras below this rtsp:// address")
    given = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    try:
        clips = composed(console)
        stop = stop_on_signals()
        if given.publish:
            console.print(
                "publishing " + "  ".join(f"{given.publish.rstrip('/')}/{name}" for name in clips), markup=False
            )
            threads = [
                threading.Thread(
                    target=publish, args=(clip, f"{given.publish.rstrip('/')}/{name}", stop), name=name, daemon=True
                )
                for name, clip in clips.items()
            ]
            for thread in threads:
                thread.start()
            stop.wait()
            for thread in threads:
                thread.join(5.0)
            return
        with RtspServer(port=given.serve) as server:
            for name, clip in clips.items():
                server.add(name, clip.path, username=USER, password=PASSWORD)
            console.print(
                f"serving {'  '.join(server.url(name) for name in clips)}, user {USER}, password {PASSWORD}",
                markup=False,
            )
            stop.wait()
    except PipelineError as error:
        sys.stderr.write(f"demo: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
