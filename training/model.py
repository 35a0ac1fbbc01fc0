"""The network: MobileNetV2 and three heads, in Keras alone, so that every back end of Keras trains it.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018. In: float RGB 0..255,
(n, side, side, 3), rescaled inside. Out: a dict of logits; what they mean is worked out in inference/heads.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from inference.jax_convolutions import with_products
from inference.predictor import Logits
from pipeline.attributes import ATTRIBUTES, ETHNICITIES, GENDERS
from pipeline.errors import ConfigError
from pipeline.manifest import load_manifest, verified_weights
from training.model_folder import load_keras
from training.recipe import Recipe

MOST_PARAMETERS: Final = 3_600_000
NO_INIT: Final = "none"
IMAGENET: Final = "imagenet"
FACE: Final = "face"  # the output that learns what another network sees; training only
# keras.applications' 0.999 takes thousands of steps to forget the start: short runs would be judged by its statistics.
_NORM_MOMENTUM: Final = 0.99


def build_model(recipe: Recipe, init: str = NO_INIT, *, for_training: bool = False, face_width: int = 0) -> Any:
    """Build the network, its backbone from *init*: "imagenet" (Keras downloads it), "none", or a weights file.

    Where *init* is the folder of a model or of a finished run, all weights are that model's, the heads' too.
    *for_training* takes TensorFlow's fused normalisation, or products for JAX, where that is the back end; the weights
    are the same, in the same order, and the plain network is what is kept. *face_width* adds an output of that many
    numbers, to learn what another network sees (FitNets: A. Romero et al., ICLR 2015). Raises ConfigError where the start
    cannot be had or is of another shape.
    """
    keras.utils.set_random_seed(recipe.seed)
    side, precision = recipe.size_px, keras.dtype_policies.DTypePolicy(recipe.precision)
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    start = _started_model(Path(init)) if init not in {IMAGENET, NO_INIT} and Path(init).is_dir() else None
    try:
        backbone = _backbone(recipe, init if start is None else NO_INIT)
    finally:
        keras.config.set_dtype_policy(previous)
    if for_training and keras.backend.backend() == "tensorflow":
        backbone = _with_fused_normalisation(backbone)
    if for_training and keras.backend.backend() == "jax":
        backbone = with_products(backbone)
    _freeze(backbone, recipe.frozen_blocks)
    picture = keras.Input((side, side, 3), name="image")
    features = layers.GlobalAveragePooling2D(name="features")(
        backbone(layers.Rescaling(1 / 127.5, offset=-1.0)(picture))
    )
    first, last = recipe.ages
    sizes = {"age": last - first + 1, "gender": len(GENDERS), "ethnicity": len(ETHNICITIES)}
    outputs: dict[str, Any] = {name: _head(features, name, sizes[name], recipe) for name in ATTRIBUTES}
    model = keras.Model(picture, outputs, name="demographics")
    if model.count_params() > MOST_PARAMETERS:
        raise ConfigError(
            f"recipe head_units: {model.count_params():,} parameters, {MOST_PARAMETERS:,} at most; take fewer"
        )
    if start is not None:
        weights = start.get_weights()
        if [each.shape for each in weights] != [tuple(each.shape) for each in model.weights]:
            raise ConfigError(
                f"init {init}: weights of another shape; repeat alpha, head_units and what else made that model, or "
                "start from imagenet"
            )
        model.set_weights(weights)
    if not face_width:
        return model
    face = layers.Dense(face_width, dtype="float32", name=FACE)(features)
    return keras.Model(picture, {**outputs, FACE: face}, name="demographics")


def own_weights(model: Any) -> list[Any]:
    """Give the weights of *model* that are kept: all but those of what is learned beside."""
    return [each for each in model.weights if not each.path.startswith(f"{FACE}/")]


def _started_model(folder: Path) -> Any:
    """Load the model that lies in *folder*, or in the finished run *folder*. Raises ConfigError."""
    inner = folder / "model"
    found = inner if inner.is_dir() else folder
    return load_keras(verified_weights(found, load_manifest(found)))


def _backbone(recipe: Recipe, init: str) -> Any:
    shape = (recipe.size_px, recipe.size_px, 3)
    weights = IMAGENET if init == IMAGENET else None
    if init not in {IMAGENET, NO_INIT} and not Path(init).is_file():
        raise ConfigError(
            f"init {init}: no such file; give imagenet, none, a model's folder, or a .weights.h5 of MobileNetV2 without top"
        )
    try:
        backbone = keras.applications.MobileNetV2(
            input_shape=shape, alpha=recipe.alpha, include_top=False, weights=weights
        )
    except Exception as error:  # Keras raises a bare Exception where its download fails
        if weights is None:
            raise
        raise ConfigError(
            f"init imagenet: Keras could not download MobileNetV2's weights ({error}); give --init FILE "
            "(a .weights.h5 without top), or --init none to start from nothing"
        ) from error
    if init not in {IMAGENET, NO_INIT}:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Keras only warns where it leaves a layer as it was
                backbone.load_weights(init)
        except (OSError, ValueError, KeyError, TypeError, UserWarning) as error:
            raise ConfigError(
                f"init {init}: not the weights of MobileNetV2 {recipe.alpha} without top "
                f"({str(error).splitlines()[0][:200]})"
            ) from error
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = _NORM_MOMENTUM
    return backbone


def _with_fused_normalisation(backbone: Any) -> Any:
    """Clone *backbone* with TensorFlow's fused normalisation, which Keras 3 does not use.

    On two cores at 112 px a step is 1.6 times as fast (90 to 142 faces/s, batch 64).
    """
    from training.fused_normalisation import FusedBatchNormalization  # noqa: PLC0415  there is TensorFlow only here

    def changed(layer: Any) -> Any:
        kind = FusedBatchNormalization if type(layer) is layers.BatchNormalization else type(layer)
        return kind.from_config(layer.get_config())

    clone = keras.models.clone_model(backbone, clone_function=changed)
    clone.set_weights(backbone.get_weights())
    return clone


def _freeze(backbone: Any, blocks: int) -> None:
    """Hold the stem and the first *blocks* blocks as they are, normalisation included."""
    if blocks == 0:
        return
    live = f"block_{blocks}_"
    for layer in backbone.layers:
        if layer.name.startswith(live):
            return
        layer.trainable = False


def _head(features: Any, name: str, size: int, recipe: Recipe) -> Any:
    penalty = keras.regularizers.L2(recipe.head_l2)
    x = layers.Dropout(recipe.dropout, name=f"{name}_dropout_1")(features)
    x = layers.Dense(recipe.head_units, activation="relu", kernel_regularizer=penalty, name=f"{name}_fc")(x)
    x = layers.Dropout(recipe.dropout, name=f"{name}_dropout_2")(x)
    return layers.Dense(size, kernel_regularizer=penalty, dtype="float32", name=name)(x)


def losses(recipe: Recipe) -> dict[str, Callable[[Any, Any], Any]]:
    """Give the loss of each head on (soft label, logits): one value per face."""
    first, last = recipe.ages
    years = np.arange(first, last + 1, dtype=np.float32)

    def cross_entropy(wanted: Any, logits: Any) -> Any:
        return ops.categorical_crossentropy(wanted, logits, from_logits=True)

    def age_loss(wanted: Any, logits: Any) -> Any:
        error = ops.abs(ops.sum(ops.softmax(logits) * years, axis=-1) - wanted[:, -1])
        slope = ops.where(error <= 1, 0.5 * ops.square(error), error - 0.5)
        return cross_entropy(wanted[:, :-1], logits) + recipe.age_huber * slope

    def mean_square(wanted: Any, said: Any) -> Any:
        return ops.mean(ops.square(said - wanted), axis=-1)

    return {"age": age_loss, "gender": cross_entropy, "ethnicity": cross_entropy, FACE: mean_square}


def metrics(recipe: Recipe) -> dict[str, list[Any]]:
    """Give what is watched in training: age MAE, gender and ethnicity accuracy."""
    first, last = recipe.ages
    years = np.arange(first, last + 1, dtype=np.float32)

    def mae(wanted: Any, logits: Any) -> Any:
        return ops.abs(ops.sum(ops.softmax(logits) * years, axis=-1) - wanted[:, -1])

    return {
        "age": [keras.metrics.MeanMetricWrapper(mae, name="mae")],
        "gender": [keras.metrics.CategoricalAccuracy(name="accuracy")],
        "ethnicity": [keras.metrics.CategoricalAccuracy(name="accuracy")],
    }


def optimizer(recipe: Recipe, steps: int) -> Any:
    """AdamW with a warm-up, a cosine over *steps* to the final rate, clipping and averaged weights.

    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    warm_up = min(round(recipe.warm_up * steps), steps - 1)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warm_up else recipe.learning_rate,
        decay_steps=max(1, steps - warm_up),
        warmup_target=recipe.learning_rate if warm_up else None,
        warmup_steps=warm_up,
        alpha=recipe.final_rate,
    )
    chosen = keras.optimizers.AdamW(
        rate,
        weight_decay=recipe.weight_decay,
        beta_2=recipe.beta_2,
        global_clipnorm=recipe.clip,
        use_ema=True,
        # In a short run the average would still remember the start: it looks back over a twentieth of the run at most.
        ema_momentum=min(recipe.ema, max(0.0, 1 - 20 / steps)),
    )
    chosen.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return chosen


def _has_gpu() -> bool:
    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:  # JAX says so where it knows no such platform
        return False


def compile_model(model: Any, recipe: Recipe, steps: int) -> None:
    """Make *model* ready for *steps* steps of training."""
    weights = {
        "age": recipe.age_weight,
        "gender": recipe.gender_weight,
        "ethnicity": recipe.ethnicity_weight,
        FACE: recipe.face_weight,
    }
    model.compile(
        optimizer=optimizer(recipe, steps),
        loss={name: loss for name, loss in losses(recipe).items() if name in model.output},
        loss_weights={name: weight for name, weight in weights.items() if name in model.output},
        metrics=metrics(recipe),
        # TensorFlow's XLA is slower than its own kernels on a CPU; JAX always compiles.
        jit_compile=keras.backend.backend() == "jax" or _has_gpu(),
    )


def predict_logits(
    model: Any, crops: Callable[[NDArray[np.int64]], NDArray[np.uint8]], count: int, batch: int = 64
) -> Logits:
    """Run *model* over *count* crops, which the function *crops* decodes by rows; on whatever back end it is."""
    parts = []
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch)
        # One shape for all batches: another would be compiled anew.
        out = model.predict_on_batch(crops(np.minimum(rows, count - 1)).astype(np.float32))
        parts.append([np.asarray(out[name], np.float32)[: count - start] for name in ATTRIBUTES])
    return Logits(*(np.concatenate(heads) for heads in zip(*parts, strict=True)))
