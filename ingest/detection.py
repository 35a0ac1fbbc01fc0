"""Which implementation finds the faces: YuNet on ONNX Runtime, which is the faster, or on OpenCV. Both give the same boxes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import structlog

from ingest.detector import Detector
from ingest.onnxruntime_detector import OnnxruntimeDetector, YunetNetwork
from ingest.yunet_detector import YunetDetector
from pipeline.errors import ConfigError

log = structlog.get_logger()

OpenDetector = Callable[[int], Detector]
"""Opens a detector for one camera, which searches pictures at that many pixels a side, at most."""


def open_detection(wanted: Literal["auto", "onnxruntime", "opencv"], model: Path | None = None) -> OpenDetector:
    """Load the *wanted* implementation once, for any number of cameras; *model* is another YuNet file than the shipped one.

    With auto, OpenCV takes what ONNX Runtime does not: another generation of YuNet. Raises ConfigError.
    """
    if wanted != "opencv" and (wanted == "onnxruntime" or find_spec("onnxruntime") is not None):
        try:
            network = YunetNetwork(model)
        except ConfigError as error:
            if wanted == "onnxruntime":
                raise
            YunetDetector(model)  # raises where neither can
            log.warning("detector_falls_back", detector="opencv", detail=str(error))
        else:
            log.info("detector_chosen", detector="onnxruntime")
            return lambda max_side_px: OnnxruntimeDetector(network, max_side_px=max_side_px)
    YunetDetector(model)  # a model that does not load is found out here, not in a camera's thread
    log.info("detector_chosen", detector="opencv")
    return lambda max_side_px: YunetDetector(model, max_side_px=max_side_px)
