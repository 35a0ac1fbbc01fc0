"""What the heads are taught: soft labels, oversampling, and the losses, in numpy.

The age label is a distribution over years around the true one: B.-B. Gao et al., "Deep Label Distribution Learning with
Label Ambiguity", IEEE TIP 26(6), 2017. Labels are estimates, so one sharp year would be a lie; a baby's age is known
better.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from inference.heads import softmax
from inference.predictor import Logits
from training.dataset import Faces
from training.recipe import Recipe

Floats = NDArray[np.float32]
_MOST_OFTEN: Final = 5.0
GROWN_UP: Final = 20  # years, from which the spread of the age label stays the same


class Word(NamedTuple):
    """What teachers say of n faces: probabilities."""

    age: Floats  # (n, years)
    gender: Floats  # (n, 2)
    ethnicity: Floats  # (n, 5)


class Targets(NamedTuple):
    """Soft labels of n faces, by the network's outputs."""

    age: Floats  # (n, years + 1): a distribution over years; the last column is the age that is taught, for the Huber loss
    gender: Floats  # (n, 2)
    ethnicity: Floats  # (n, 5)
    face: Floats  # (n, d): what another network sees in them; d = 0 where there is none, and no such output


def age_distribution(age: Floats, recipe: Recipe) -> Floats:
    """Spread each age (n,) over the years of the head: (n, years), a Gaussian cut at the ends, rows sum to 1."""
    first, last = recipe.ages
    years = np.arange(first, last + 1)
    grown = np.clip(age / GROWN_UP, 0, 1)
    sigma = recipe.age_sigma_at_birth + grown * (recipe.age_sigma - recipe.age_sigma_at_birth)
    weights = np.exp(-0.5 * ((years[None] - age[:, None]) / sigma[:, None]) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def smoothed(labels: NDArray[np.int64], classes: int, smoothing: float) -> Floats:
    """Give (n, classes) one-hot labels with *smoothing* spread over all classes."""
    return ((1 - smoothing) * np.eye(classes)[labels] + smoothing / classes).astype(np.float32)


def make_targets(faces: Faces, recipe: Recipe, teacher: Word | None = None, face: Floats | None = None) -> Targets:
    """Make the soft labels of all faces; a teacher's probabilities are mixed in as `recipe.distillation` says, and its ages.

    *face* (n, d) is what another network sees in them, for the network to learn beside.
    """
    age = age_distribution(faces.age, recipe)
    gender = smoothed(faces.gender, 2, recipe.gender_smoothing)
    ethnicity = smoothed(faces.ethnicity, 5, recipe.ethnicity_smoothing)
    taught = faces.age
    if teacher is not None:
        share = np.float32(recipe.distillation)
        age, gender, ethnicity = (
            (1 - share) * own + share * said for own, said in zip((age, gender, ethnicity), teacher, strict=True)
        )
        first, last = recipe.ages
        said = teacher.age @ np.arange(first, last + 1, dtype=np.float32)
        taught = np.asarray((1 - share) * faces.age + share * said, np.float32)
    if face is None:
        face = np.zeros((len(faces), 0), np.float32)
    return Targets(np.concatenate([age, taught[:, None]], axis=1), gender, ethnicity, face)


def targets_by(word: Word, recipe: Recipe, face: Floats) -> Targets:
    """Make the soft labels of faces that have none of their own: all is the teachers' *word*, and *face* as above."""
    first, last = recipe.ages
    said = word.age @ np.arange(first, last + 1, dtype=np.float32)
    return Targets(np.concatenate([word.age, said[:, None]], axis=1), word.gender, word.ethnicity, face)


def mixed_up(
    crops: NDArray[np.uint8], targets: Targets, generator: Generator, alpha: float
) -> tuple[NDArray[np.uint8], Targets]:
    """Blend each of n crops (n, side, side, 3) and its labels with another's of the batch, by shares from Beta(alpha, alpha).

    A blend is taught to be that much of each, which keeps a network from learning its faces by heart. The larger
    share stays with the face itself. H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    if alpha <= 0:
        return crops, targets
    drawn = generator.beta(alpha, alpha, len(crops))
    own = np.maximum(drawn, 1 - drawn).astype(np.float32)
    other = generator.permutation(len(crops))

    def blend(values: NDArray[Any]) -> Floats:
        share = own.reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray(share * values + (1 - share) * values[other], np.float32)

    return np.rint(blend(crops)).astype(np.uint8), Targets(*(blend(values) for values in targets))


def drawing_weights(faces: Faces, recipe: Recipe) -> NDArray[np.float64]:
    """Say how often each face is drawn, mean 1: rare decades and ethnicities more, five times at most."""
    weights = np.ones(len(faces))
    decade = (faces.age // 10).astype(np.int64)
    for cells, balance in ((decade, recipe.age_balance), (faces.ethnicity, recipe.ethnicity_balance)):
        _, place, counts = np.unique(cells, return_inverse=True, return_counts=True)
        weights *= (counts[place] / len(faces)) ** -balance
    for _ in range(20):  # what is cut off goes to all the others, so that five stays the most
        weights = np.minimum(weights / weights.mean(), _MOST_OFTEN)
    return weights


def oversampling_shift(age: Floats, weights: NDArray[np.float64]) -> Floats:
    """Say by how much oversampling lifts each year's log probability: (years,), from soft labels (n, years).

    A network that learned from faces drawn by *weights* (n,), mean 1, believes in their shares; what it would have said
    under the shares of all faces is its logits less this. M. Saerens et al., "Adjusting the Outputs of a Classifier to
    New a Priori Probabilities", Neural Computation 14(1), 2002, eq. 2.4.
    """
    tiny = 1e-12  # years that no face has stay as they are
    natural, drawn = age.mean(axis=0), (age * weights[:, None]).mean(axis=0)
    return np.asarray(np.log((drawn + tiny) / (natural + tiny)), np.float32)


def draw_epoch(weights: NDArray[np.float64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw len(weights) rows in the order of one epoch, each as often as its weight says, give or take one."""
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(weights))  # so that neighbours in the data are not drawn by turns
    ends = np.cumsum(weights[order]) / weights.sum() * len(weights)
    marks = np.arange(len(weights)) + generator.random()  # systematic sampling: evenly spaced marks
    rows = order[np.minimum(np.searchsorted(ends, marks, side="right"), len(weights) - 1)]
    return np.asarray(generator.permutation(rows))


def huber(error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the square up to one year, then linear."""
    size = np.abs(error)
    return np.where(size <= 1, 0.5 * size**2, size - 0.5)


def head_losses(logits: Logits, targets: Targets, recipe: Recipe) -> dict[str, float]:
    """Work out the mean loss of each head as training does, for the validation part."""
    first, last = recipe.ages
    probability = {name: softmax(values) for name, values in logits._asdict().items()}
    wanted = {"age": targets.age[:, :-1], "gender": targets.gender, "ethnicity": targets.ethnicity}
    losses = {
        name: float(-(wanted[name] * np.log(np.maximum(probability[name], 1e-12))).sum(axis=1).mean())
        for name in probability
    }
    expected = probability["age"] @ np.arange(first, last + 1)
    losses["age"] += recipe.age_huber * float(huber(expected - targets.age[:, -1]).mean())
    return losses
