"""`demographics infer` with the scripted engine in place of the network: `python -m tests.chaos.infer DELAY_S`."""

from __future__ import annotations

import sys

from inference.__main__ import serve
from pipeline.settings import load_settings
from pipeline.telemetry import configure_logging
from tests.chaos.script import ScriptedEngine

if __name__ == "__main__":
    settings = load_settings()
    configure_logging(level=settings.log_level, json=True)
    serve(settings, lambda _: ScriptedEngine(float(sys.argv[1])))
