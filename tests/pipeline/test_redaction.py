"""No credential survives redaction, wherever it stands."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pipeline.redaction import redact
from pipeline.telemetry import configure_logging

secrets = st.text(
    st.characters(codec="ascii", exclude_characters="/?# \t\r\n\x0b\x0c\"'", categories=("L", "N", "P", "S")),
    min_size=6,
)


@given(secrets, st.sampled_from(["rtsp", "rtsps", "http", "redis", "rediss"]))
def test_a_password_in_an_address_is_hidden_whatever_is_in_it(secret: str, scheme: str) -> None:
    """Also one that holds an @ that nobody escaped."""
    shown = redact(f"cannot open {scheme}://viewer:{secret}@camera-7.lan:554/stream1, giving up")
    assert shown == f"cannot open {scheme}://***@camera-7.lan:554/stream1, giving up"


@given(secrets.filter(lambda text: not set(text) & set("&;")))
def test_a_secret_parameter_is_hidden_and_the_rest_stays(secret: str) -> None:
    """Cameras take user and password as parameters too."""
    shown = redact(f"http://10.0.0.5/mjpg?user=admin&password={secret}&fps=5")
    assert shown == "http://10.0.0.5/mjpg?user=***&password=***&fps=5"


@given(st.text())
def test_redaction_is_idempotent(text: str) -> None:
    """It may be applied at every edge."""
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text", ["rtsp://10.0.0.5:554/stream1", "lobby.mp4", "me@example.org wrote", "http://h/p?fps=5"]
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    """An address that one needs to find the camera remains readable."""
    assert redact(text) == text


def test_no_log_line_shows_a_password_not_even_of_an_exception() -> None:
    """The last processor redacts every field, nested ones and tracebacks too, and the standard library's lines."""
    stream = io.StringIO()
    configure_logging(stream=stream)
    log = structlog.get_logger()
    log.warning("lost", address="rtsp://u:hunter2@h/1", nested={"tried": ["rtsp://u:hunter2@h/2"]})
    try:
        int("rtsp://u:hunter2@h/3")
    except ValueError:
        log.exception("failed")
    logging.getLogger("somebody").warning("cannot open %s", "rtsp://u:hunter2@h/4")
    lines = stream.getvalue().splitlines()
    assert len([json.loads(line) for line in lines]) == 3
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("rtsp://***@h/") >= 4


def test_a_broker_that_goes_away_is_a_line_not_a_traceback() -> None:
    """The Kafka client logs what it meets with its trace; ours are kept."""
    stream = io.StringIO()
    configure_logging(stream=stream)
    for name in ("kafka.net", "ours"):
        try:
            int("no number")
        except ValueError:
            logging.getLogger(name).exception("closing %s", "socket")
    theirs, ours = (json.loads(line) for line in stream.getvalue().splitlines())
    assert theirs["event"] == "closing socket (ValueError)"
    assert "exception" not in theirs
    assert "Traceback" in ours["exception"]
