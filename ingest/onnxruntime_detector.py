"""Faces by YuNet on ONNX Runtime, decoded by us: the boxes of OpenCV's FaceDetectorYN in half to two thirds of its time.

The decoding is OpenCV's (modules/objdetect/src/face_detect.cpp, 4.x), which is that of the paper named in yunet_detector.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.detector import FaceBox, Image
from ingest.onnx_shapes import with_free_shape
from ingest.yunet_detector import LEAST_SCORE, MOST_FACES, OVERLAP, face_boxes, shrunk, yunet_model
from pipeline.errors import ConfigError

STRIDES: Final = (8, 16, 32)
_HEADS: Final = ("cls", "obj", "bbox", "kps")


class YunetNetwork:
    """YuNet, opened once for all cameras of a worker; safe to call from many threads, each with its own picture."""

    def __init__(self, model: Path | None = None) -> None:
        """Load the model. Raises ConfigError where there is none, or one that is no YuNet."""
        import onnxruntime  # noqa: PLC0415  where it is used only

        path = yunet_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # cameras are the parallelism
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                with_free_shape(path.read_bytes()), options, providers=["CPUExecutionProvider"]
            )
            names = {each.name for each in self._session.get_outputs()}
        except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions have no root of their own
            raise ConfigError(
                f"detector model {path}: not a YuNet file in ONNX ({type(error).__name__}); leave the setting out to use the one "
                "that is shipped"
            ) from None
        self._wanted = [f"{head}_{stride}" for stride in STRIDES for head in _HEADS]
        if missing := sorted(set(self._wanted) - names):
            raise ConfigError(
                f"detector model {path}: gives no {', '.join(missing)}: not the YuNet of 2023; set the detector to opencv"
            )
        self._taken = self._session.get_inputs()[0].name

    def rows(self, picture: Image) -> NDArray[np.float32]:
        """Search one picture: (n, 15) as FaceDetectorYN gives them: x, y, width, height, five landmarks, score; best first."""
        height, width = picture.shape[:2]
        below, beside = -height % STRIDES[-1], -width % STRIDES[-1]
        if below or beside:
            picture = np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_CONSTANT), np.uint8)
        heads = self._session.run(self._wanted, {self._taken: cv2.dnn.blobFromImage(picture)})
        columns = picture.shape[1]
        found = [
            _decoded(stride, columns // stride, *(head[0] for head in heads[4 * level : 4 * level + 4]))
            for level, stride in enumerate(STRIDES)
        ]
        return _distinct(np.concatenate(found))


def _decoded(
    stride: int,
    columns: int,
    cls: NDArray[np.float32],
    obj: NDArray[np.float32],
    bbox: NDArray[np.float32],
    kps: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Turn one level of the pyramid into rows: its cells, *columns* of them in a line, are *stride* pixels wide."""
    score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
    cells = np.flatnonzero(score >= LEAST_SCORE)
    corner = np.stack((cells % columns, cells // columns), axis=1).astype(np.float32)
    middle = (corner + bbox[cells, :2]) * stride
    size = np.exp(bbox[cells, 2:4]) * stride
    landmarks = (kps[cells].reshape(-1, 5, 2) + corner[:, None]) * stride
    return np.concatenate((middle - size / 2, size, landmarks.reshape(-1, 10), score[cells, None]), axis=1)


def _distinct(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep the best of rows that lie on each other, best first; overlaps are judged in whole pixels, as OpenCV does."""
    if len(rows) > 1:
        boxes = np.trunc(rows[:, :4]).astype(np.float64)
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 14].tolist(), LEAST_SCORE, OVERLAP, 1.0, MOST_FACES)
        rows = rows[np.asarray(kept, np.int64).reshape(-1)]
    return rows


class OnnxruntimeDetector:
    """YuNet at a bounded picture size, on ONNX Runtime."""

    def __init__(self, network: YunetNetwork, *, max_side_px: int = 640) -> None:
        self._network = network
        self._max_side_px = max_side_px

    def detect(self, image: Image) -> Sequence[FaceBox]:
        """Find the faces in one picture, best first, in its own pixels."""
        small = shrunk(image, self._max_side_px)
        return face_boxes(self._network.rows(small), image.shape, small.shape)
