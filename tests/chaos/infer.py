"""`demographics infer` with the scripted engine in place of the network: `python -m tests.chaos.infer DELAY_S [default]`.

With *default* it takes crops as the model that is shipped does, from real cameras, and says whatever comes of them.
"""

from __future__ import annotations

import sys

from msgspec.structs import replace

from inference.__main__ import serve
from pipeline.manifest import DEFAULT_MODEL, load_manifest
from pipeline.settings import Settings, load_settings
from pipeline.telemetry import configure_logging
from tests.chaos.script import MANIFEST, ScriptedEngine


def engine(_: Settings) -> ScriptedEngine:
    """Make the engine that the arguments ask for."""
    crop = load_manifest(DEFAULT_MODEL).crop if sys.argv[2:] == ["default"] else MANIFEST.crop
    return ScriptedEngine(float(sys.argv[1]), replace(MANIFEST, crop=crop))


if __name__ == "__main__":
    settings = load_settings()
    configure_logging(level=settings.log_level, json=True)
    serve(settings, engine)
