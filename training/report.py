"""Plots and a Markdown report of an evaluation, and the curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.heads import Heads
from pipeline.attributes import AGE_BANDS, ATTRIBUTES, ETHNICITIES, GENDERS
from pipeline.errors import ConfigError
from training.dataset import Faces

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#2563a8"
ORANGE: Final = "#d9722e"
GREY: Final = "#8a8f98"
_LABELS: Final = {"gender": GENDERS, "ethnicity": ETHNICITIES, "age_band": AGE_BANDS}
_CURVES: Final = {
    "face_px": "face, px of the crop's side",
    "blur_ratio": "blur, sigma / side",
    "jpeg_quality": "JPEG quality",
    "light": "light left",
}


def require_matplotlib() -> None:
    """Raise ConfigError where plots cannot be drawn, before any long work."""
    try:
        import matplotlib as mpl  # noqa: PLC0415  optional
    except ImportError:
        raise ConfigError("plots need matplotlib, which is not installed: pip install demographics[training]") from None
    mpl.use("Agg")  # no screen is needed


def _new(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # noqa: PLC0415  optional

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(visible=True, color="#e4e6ea", linewidth=0.8)
        each.set_axisbelow(True)
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path


def plot_history(history: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Draw loss and accuracy of every head over the epochs: training as it runs, validation with averaged weights."""
    figure, _ = _new(11, 6)
    figure.clear()
    grid = figure.subplots(2, 3)
    epochs = [row["epoch"] for row in history]
    shown = {"age": "mae", "gender": "accuracy", "ethnicity": "accuracy"}
    for column, name in enumerate(ATTRIBUTES):
        upper, lower = grid[0, column], grid[1, column]
        for axes, own, chosen in (
            (upper, f"{name}_loss", f"val_{name}_loss"),
            (lower, f"{name}_{shown[name]}", f"val_{name}_{shown[name]}"),
        ):
            axes.plot(epochs, [row[own] for row in history], color=GREY, marker=".", label="training, degraded faces")
            axes.plot(epochs, [row[chosen] for row in history], color=BLUE, marker=".", label="validation")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=True, color="#e4e6ea", linewidth=0.8)
            axes.xaxis.get_major_locator().set_params(integer=True)
        upper.set_title(name)
        lower.set_xlabel("epoch")
        upper.set_ylabel("loss")
        lower.set_ylabel("MAE, years" if name == "age" else "accuracy")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return _save(figure, path)


def plot_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str, path: Path) -> Path:
    """Draw one confusion matrix: colour and number are the share of each true class, the count beneath."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 2.2 + 0.75 * len(labels)
    figure, [axes] = _new(side + 0.6, side)
    axes.grid(visible=False)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(
            column,
            row,
            f"{shares[row, column]:.0%}\n{counts[row, column]:,}",
            ha="center",
            va="center",
            color=colour,
            fontsize=8,
        )
    axes.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 2 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("said")
    axes.set_ylabel("true")
    axes.set_title(title)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class")
    return _save(figure, path)


def plot_age_scatter(heads: Heads, faces: Faces, path: Path) -> Path:
    """Draw the said age over the true one."""
    figure, [axes] = _new(6.2, 5.8)
    shift = np.random.default_rng(0).uniform(-0.35, 0.35, len(faces))  # true ages are whole: dots would hide each other
    axes.plot([0, 116], [0, 116], color=ORANGE, linewidth=1.2, label="right")
    axes.scatter(faces.age + shift, heads.age, s=7, alpha=min(1.0, 0.15 + 150 / len(faces)), color=BLUE, linewidths=0)
    axes.set(xlabel="true age, years", ylabel="said age, years", xlim=(-2, 118), ylim=(-2, 118), aspect="equal")
    axes.set_title(f"Age, {len(faces):,} faces")
    axes.legend(frameon=False, loc="upper left")
    return _save(figure, path)


def plot_age_error(heads: Heads, faces: Faces, path: Path, width: int = 5) -> Path:
    """Draw MAE and bias over the true age, in steps of *width* years."""
    error = heads.age - faces.age
    place = (faces.age // width).astype(int)
    steps = np.unique(place)
    figure, [upper, lower] = _new(10, 4.2, 2)
    middles = (steps + 0.5) * width
    counts = [int((place == step).sum()) for step in steps]
    upper.bar(middles, [np.abs(error[place == step]).mean() for step in steps], width * 0.85, color=BLUE)
    upper.set(xlabel="true age, years", ylabel="MAE, years", title="Error by age")
    for middle, step, count in zip(middles, steps, counts, strict=True):
        upper.text(
            middle, np.abs(error[place == step]).mean(), f"{count}", ha="center", va="bottom", fontsize=6, color=GREY
        )
    lower.axhline(0, color=GREY, linewidth=0.8)
    lower.errorbar(
        middles, [error[place == step].mean() for step in steps], [error[place == step].std() for step in steps],
        color=BLUE, ecolor="#b7cbe4", marker="o", markersize=4, linewidth=1.2,
    )  # fmt: skip
    lower.set(
        xlabel="true age, years", ylabel="said minus true, years", title="Bias by age (bars: one standard deviation)"
    )
    return _save(figure, path)


def plot_reliability(calibration: Mapping[str, Any], path: Path) -> Path:
    """Draw how often answers are right over how sure they were, before and after temperatures, and the age's spread."""
    figure, axes = _new(11, 4, 3)
    for each, name in zip(axes[:2], ("gender", "ethnicity"), strict=True):
        each.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
        for stage, colour in (("before", ORANGE), ("after", BLUE)):
            found = calibration[name][stage]
            bins = found["bins"]
            sure, right = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
            each.plot(sure, right, color=colour, marker="o", markersize=4, label=f"{stage}: ECE {found['ece']:.3f}")
        low = 0.45 if name == "gender" else 0.15
        each.set(
            xlabel="confidence",
            ylabel="share right",
            title=f"{name}, T = {calibration[name]['temperature']:.2f}",
            xlim=(low, 1.02),
        )
        each.legend(frameon=False, loc="upper left")
    axes[2].plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for stage, colour in (("before", ORANGE), ("after", BLUE)):
        coverage = calibration["age"][stage]["coverage"]
        axes[2].plot(
            [float(level) for level in coverage], list(coverage.values()), color=colour, marker="o", label=stage
        )
    axes[2].set(
        xlabel="level of the interval",
        ylabel="ages inside it",
        title=f"age, T = {calibration['age']['temperature']:.2f}",
    )
    axes[2].set(xlim=(0.4, 1.0), ylim=(0.4, 1.02))
    axes[2].legend(frameon=False, loc="upper left")
    return _save(figure, path)


def plot_robustness(robustness: Mapping[str, Any], path: Path) -> Path:
    """Draw age MAE and both accuracies as pictures get worse; the dotted lines are the faces as they are."""
    figure, _ = _new(12, 5.6)
    figure.clear()
    grid = figure.subplots(2, len(_CURVES), sharey="row", squeeze=False)
    whole = robustness["as_it_is"]
    for column, (name, says) in enumerate(_CURVES.items()):
        rows = robustness[name]
        marks = [f"{row['value']:g}" for row in rows]
        upper, lower = grid[0, column], grid[1, column]
        upper.axhline(whole["age_mae"], color=BLUE, linestyle=":", linewidth=1)
        upper.plot(marks, [row["age_mae"] for row in rows], color=BLUE, marker="o", markersize=4)
        for key, colour in (("gender_accuracy", ORANGE), ("ethnicity_accuracy", GREY)):
            lower.axhline(whole[key], color=colour, linestyle=":", linewidth=1)
            lower.plot(
                marks, [row[key] for row in rows], color=colour, marker="o", markersize=4, label=key.partition("_")[0]
            )
        lower.set_xlabel(says)
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=True, color="#e4e6ea", linewidth=0.8)
    grid[0, 0].set_ylabel("age MAE, years")
    grid[1, 0].set_ylabel("accuracy")
    grid[1, 0].legend(frameon=False)
    return _save(figure, path)


def write_report(
    folder: Path, found: Mapping[str, Any], heads: Heads, faces: Faces, history: Sequence[Mapping[str, float]] = ()
) -> Path:
    """Write report.md and its plots into *folder*; gives the report's path. Raises ConfigError without matplotlib."""
    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in _LABELS.items():
        plot_confusion(found["confusion"][name], labels, name.replace("_", " "), folder / f"confusion_{name}.png")
    plot_age_scatter(heads, faces, folder / "age_scatter.png")
    plot_age_error(heads, faces, folder / "age_error.png")
    plot_reliability(found["calibration"], folder / "reliability.png")
    if "robustness" in found:
        plot_robustness(found["robustness"], folder / "robustness.png")
    if history:
        plot_history(history, folder / "history.png")
    path = folder / "report.md"
    path.write_text(markdown(found, faces, has_history=bool(history)), encoding="utf-8")
    return path


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _row(name: str, figures: Mapping[str, float]) -> list[str]:
    return [
        name,
        f"{figures['n']:,.0f}",
        f"{figures['age_mae']:.2f}",
        f"{figures['age_mse']:.1f}",
        f"{figures['age_bias']:+.2f}",
        f"{figures['age_cs5']:.1%}",
        f"{figures['gender_accuracy']:.1%}",
        f"{figures['ethnicity_accuracy']:.1%}",
    ]


_HEADER: Final = ("group", "faces", "age MAE", "age MSE", "age bias", "within 5 years", "gender", "ethnicity")


def markdown(found: Mapping[str, Any], faces: Faces, *, has_history: bool = False) -> str:
    """Say the report in Markdown."""
    spans = found["intervals"]
    percent = {"age_cs5", "gender_accuracy", "ethnicity_accuracy"}
    names = {
        "age_mae": "age MAE, years",
        "age_mse": "age MSE",
        "age_bias": "age bias, years",
        "age_cs5": "age within 5 years",
        "gender_accuracy": "gender accuracy",
        "ethnicity_accuracy": "ethnicity accuracy",
    }

    def show(key: str, value: float) -> str:
        return f"{value:.1%}" if key in percent else f"{value:.2f}"

    lines = [
        f"# Model {found['model']} on {found['n']:,} faces",
        "",
        (
            f"Weights {found['digest']}; data {faces.digest[:12]}; "
            f"the detector found no face in {faces.not_found:,} pictures, "
            f"whose centre is taken; {len(faces.rejected):,} pictures were left out."
        ),
        "",
        *_table(
            ("figure", "value", "95 % interval"),
            [
                [says, show(key, found[key]), " to ".join(show(key, end) for end in spans[key])]
                for key, says in names.items()
            ],
        ),
        (
            f"Balanced accuracy: gender {found['gender_balanced_accuracy']:.1%}, "
            f"ethnicity {found['ethnicity_balanced_accuracy']:.1%}, "
            f"age band {found['age_bands']['balanced_accuracy']:.1%}."
        ),
        "",
    ]
    for kind, groups in found["by"].items():
        lines += [
            f"## By {kind.replace('_', ' ')}",
            "",
            *_table(_HEADER, [_row(name, each) for name, each in groups.items()]),
        ]
    for head in ("gender", "ethnicity"):
        rows = [
            [label, f"{each['n']:,}", f"{each['precision']:.1%}", f"{each['recall']:.1%}", f"{each['f1']:.1%}"]
            for label, each in found[head].items()
        ]
        lines += [
            f"## {head.capitalize()} by class",
            "",
            *_table(("class", "faces", "precision", "recall", "F1"), rows),
        ]
        lines += [f"![{head}](confusion_{head}.png)", ""]
    lines += [
        "## Age",
        "",
        "![age band](confusion_age_band.png)",
        "![age](age_scatter.png)",
        "![error by age](age_error.png)",
        "",
    ]
    calibration = found["calibration"]
    lines += [
        "## Calibration",
        "",
        *_table(
            ("head", "temperature", "ECE before", "ECE after"),
            [
                [
                    head,
                    f"{calibration[head]['temperature']:.3f}",
                    *(f"{calibration[head][stage]['ece']:.4f}" for stage in ("before", "after")),
                ]
                for head in ("gender", "ethnicity")
            ],
        ),
        "Share of ages inside the middle 50, 80 and 90 % of the predicted distribution: "
        + ", ".join(f"{share:.1%}" for share in calibration["age"]["after"]["coverage"].values())
        + ".",
        "",
        "![reliability](reliability.png)",
        "",
    ]
    if "robustness" in found:
        curves = found["robustness"]
        rows = [_row("as they are", curves["as_it_is"])]
        rows += [_row(f"{_CURVES[name]}: {each['value']:g}", each) for name in _CURVES for each in curves[name]]
        lines += [
            "## Robustness",
            "",
            *_table(("faces made worse", *_HEADER[1:]), rows),
            "![robustness](robustness.png)",
            "",
        ]
    if has_history:
        lines += ["## Training", "", "![training](history.png)", ""]
    return "\n".join(lines)
