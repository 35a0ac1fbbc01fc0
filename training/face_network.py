"""What networks that tell people apart see in the faces: to be learned beside the labels, and to teach.

A labelled data set has some ten thousand faces; a network for face recognition has seen millions, and what it sees of a face
says more of age, gender and ethnicity than our network finds in the labelled ones alone. It is used twice:

- its features are foretold by an output beside the heads (A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015);
- three small networks on its features, cross-fitted, are one more teacher.

Of several networks the features lie side by side. They are needed for training only (training/published_networks.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from inference.heads import softmax
from pipeline.attributes import ATTRIBUTES
from pipeline.errors import ConfigError
from training.blending import NO_BLENDS, NO_PAIRS, Blends, Pairs, make_blends, pair_up
from training.dataset import Faces, Progress, cache_folder, decode_picture, keep_arrays, kept_arrays, read_pictures
from training.published_networks import FaceNetwork, Look, network_of
from training.recipe import Recipe
from training.splits import near_duplicates, spread_evenly, strata
from training.targets import Floats, Word, make_targets

_BATCH: Final = 64
_FOLDS: Final = 5
_CACHE_VERSION: Final = 3

Begin = Callable[[str], Progress | None]
"""From the name of a piece of work to what hears of its progress."""
Shown = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From rows to what a network is shown of them, (n, side, side, 3)."""


def _unwatched(_what: str) -> None:
    """Let nobody hear of the progress."""


class Seen(NamedTuple):
    """What networks say of n faces, blends included: the mean of what they say of each and of its mirror image."""

    features: Floats  # (n, d)
    said: Floats  # (n, m): whatever else, for the small networks alone; m may be 0
    networks: tuple[str, ...]  # digests
    blends: Blends = NO_BLENDS  # the last rows


def see_faces(
    paths: Sequence[Path],
    data: Path,
    faces: Faces,
    *,
    pairs: Pairs = NO_PAIRS,
    networks: Sequence[FaceNetwork] | None = None,
    begin: Begin = _unwatched,
) -> Seen:
    """Let the networks at *paths* look at every face of *data*, or take what they saw before from the cache.

    They look at the blends of *pairs* after that, which are made first. *networks* are what the files are to be, where
    not the published ones. *begin* gives, for each piece of work, what hears of its progress. Raises ConfigError where a
    file is not what it should be.
    """
    read = _read(paths, networks)  # all, before anything that takes time
    blends = make_blends(data, faces, pairs, begin("blending faces"))
    each = [_seen_by(content, network, data, faces, blends, begin) for network, content in read]
    features, said = (np.concatenate(values, axis=1) for values in zip(*each, strict=True))
    return Seen(features, said, tuple(network.digest for network, _ in read), blends)


def _read(paths: Sequence[Path], networks: Sequence[FaceNetwork] | None) -> list[tuple[FaceNetwork, Any]]:
    """Read the networks' files. Raises ConfigError listing all that are not what they should be, or come twice."""
    read: list[tuple[FaceNetwork, Any]] = []
    problems: list[str] = []
    for number, path in enumerate(paths):
        try:
            network = network_of(path) if networks is None else networks[number]
            content = network.read(path, network)
        except ConfigError as error:
            problems += error.problems
            continue
        if any(network.digest == other.digest for other, _ in read):
            problems.append(
                f"face network {path}: {network.title} is given twice, and would count as two; give it once"
            )
        read.append((network, content))
    if problems:
        raise ConfigError(problems)
    return read


def _seen_by(
    read: Any, network: FaceNetwork, data: Path, faces: Faces, blends: Blends, begin: Begin
) -> tuple[Floats, Floats]:
    """Give what one network says of the faces, and after them of the blends: features and what else it says."""

    def of_faces() -> Shown:
        pictures = read_pictures(data)
        return lambda rows: np.stack(
            [network.show(decode_picture(pictures[faces.names[row]]), faces.landmarks[row]) for row in rows]
        )

    def of_blends() -> Shown:
        return lambda rows: np.stack(
            [network.show(decode_picture(blends.pictures[row]), blends.landmarks[row]) for row in rows]
        )

    drawn = hashlib.sha256(b"\0".join(blends.pictures)).hexdigest()
    found: list[Mapping[str, Any]] = []
    look: Look | None = None  # it is not needed where all is known
    for kind, count, shown, what in (
        ("", len(faces), of_faces, "looking"),
        (drawn, len(blends), of_blends, "looking at blends"),
    ):
        if not count:
            continue
        key = hashlib.sha256("\n".join((faces.digest, network.digest, str(_CACHE_VERSION), kind)).encode())
        file = cache_folder() / f"seen-{key.hexdigest()[:24]}.npz"
        if (kept := kept_arrays(file)) is None:
            look = look or network.run(read)
            features, said = _looked_at(look, shown(), count, begin(f"{what}: {network.title}"))
            kept = {"features": features.astype(np.float16), "said": said.astype(np.float16)}
            keep_arrays(file, kept)
        found.append(kept)
    features, said = (
        np.concatenate([each[name] for each in found]).astype(np.float32) for name in ("features", "said")
    )
    return features, said


def _looked_at(look: Look, shown: Shown, count: int, progress: Progress | None) -> tuple[Floats, Floats]:
    """Show a network *count* pictures and their mirror images."""
    parts: list[tuple[Floats, Floats]] = []
    for start in range(0, count, _BATCH):
        pictures = shown(np.arange(start, min(start + _BATCH, count)))
        both = zip(look(pictures), look(np.ascontiguousarray(pictures[:, :, ::-1])), strict=True)
        features, said = (np.asarray((own + mirrored) / 2, np.float32) for own, mirrored in both)
        parts.append((features, said))
        if progress:
            progress(start + len(pictures), count)
    features, said = (np.concatenate(values) for values in zip(*parts, strict=True))
    return features, said


def folds_of(faces: Faces, learning: NDArray[np.int64], recipe: Recipe) -> NDArray[np.int64]:
    """Lay the rows *learning* in five folds, near-duplicates in one: (len(learning),)."""
    rows = faces.take(learning)
    place = spread_evenly(
        near_duplicates(rows.hashes), strata(rows.age, rows.gender, rows.ethnicity), recipe.split_seed
    )
    return np.floor(place * _FOLDS).astype(np.int64)


def draw_pairs(faces: Faces, learning: NDArray[np.int64], recipe: Recipe) -> Pairs:
    """Draw the recipe's blends, each within a fold, so that there is a network that has learned neither face."""
    if recipe.blends <= 0:
        return NO_PAIRS
    fold = folds_of(faces, learning, recipe)
    return pair_up(faces, learning, fold, each=recipe.blends, seed=recipe.split_seed)


def _standardised(values: Floats, learning: NDArray[np.int64]) -> Floats:
    """Give each column mean 0 and spread 1 over the rows *learning*."""
    mean, spread = values[learning].mean(axis=0), values[learning].std(axis=0)
    return np.asarray((values - mean) / (spread + 1e-3), np.float32)


def face_targets(seen: Seen, learning: NDArray[np.int64]) -> Floats:
    """Give what the network is to foretell, (n, d): the features, over the training part's spread."""
    return _standardised(seen.features, learning)


def probe(seen: Seen, faces: Faces, learning: NDArray[np.int64], recipe: Recipe) -> Word:
    """Say each face's age, gender and ethnicity by what was seen: probabilities, from networks that did not learn that face.

    The rows *learning* lie in five folds, near-duplicates in one; each is answered for by a network that learned the four
    others, and every other row by all five. A blend is answered for like its two faces, which lie in one fold, and comes
    after all faces. Labels are softened as the recipe says.
    """
    fold = np.full(len(faces), -1)
    fold[learning] = folds_of(faces, learning, recipe)
    fold = np.concatenate([fold, fold[seen.blends.pairs.one]])
    inputs = _standardised(np.concatenate([seen.features, seen.said], axis=1), learning)
    labels = make_targets(faces, recipe)
    wanted = {"age": labels.age[:, :-1], "gender": labels.gender, "ethnicity": labels.ethnicity}
    others = np.flatnonzero(fold < 0)
    said = {name: np.zeros((len(fold), values.shape[1]), np.float32) for name, values in wanted.items()}
    for number in range(_FOLDS):
        taught, asked = learning[fold[learning] != number], np.flatnonzero(fold == number)
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
