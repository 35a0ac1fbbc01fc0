"""The network on ONNX Runtime, float32; on whatever device the installed build knows, the CPU with the plain one."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from inference.predictor import EXACT, Crops, Logits, Tolerance, core_count
from pipeline.errors import ConfigError
from pipeline.manifest import EngineName, Manifest

LARGEST: Final = 64  # crops in one run; more gains nothing and takes memory


class OnnxruntimePredictor:
    """An ONNX file with float crops in and the logits of the three heads out, by name."""

    name: Final[EngineName] = "onnxruntime"
    tolerance: Tolerance = EXACT

    def __init__(self, model: bytes, manifest: Manifest, *, threads: int = 0) -> None:
        """Open the file's contents; *threads* 0 takes as many as cores. Raises ConfigError where it is no such model."""
        import onnxruntime  # noqa: PLC0415  where it is used only

        self.manifest = manifest
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or core_count()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores from decoding and detection.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [
            each for each in ("CUDAExecutionProvider", "CPUExecutionProvider")
            if each in onnxruntime.get_available_providers()
        ]  # fmt: skip
        try:
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # noqa: BLE001  its exceptions have no root of their own
            raise ConfigError(
                f"ONNX Runtime cannot open the model ({str(error).splitlines()[0][:200]}); export it again"
            ) from None
        [taken] = self._session.get_inputs()
        self._taken = taken.name
        missing = sorted(set(Logits._fields) - {each.name for each in self._session.get_outputs()})
        if missing:
            raise ConfigError(f"the ONNX model gives no {', '.join(missing)}; export it again")

    def predict(self, crops: Crops) -> Logits:
        """Give the logits of every crop, in order; any number of crops, none included."""
        parts = [
            self._session.run(list(Logits._fields), {self._taken: crops[start : start + LARGEST].astype(np.float32)})
            for start in range(0, max(1, len(crops)), LARGEST)
        ]
        return Logits(*(np.concatenate(heads) for heads in zip(*parts, strict=True)))
