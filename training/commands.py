"""The command line's `train`, `evaluate` and `export`, for pipeline/cli.py to register.

Standard output carries JSON alone (`--json`); progress and summaries go to standard error. Networks are imported where
they are used, so that `--help` is quick. ConfigError is for the caller to show.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, cast

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import ConfigError
from pipeline.manifest import DEFAULT_MODEL, ENGINES, MANIFEST_NAME, EngineName, Manifest, load_manifest

if TYPE_CHECKING:
    from training.dataset import Faces

PARTS: Final = ("all", "train", "validation", "test")

Data = Annotated[Path, typer.Option("--data", help="UTKFace pictures: a folder, or the tar as it is published.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write; a new folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads of the network; 0 leaves it to TensorFlow.")]


def train(
    *,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; one that was stopped goes on.")] = Path(
        "runs/latest"
    ),
    init: Annotated[
        str,
        typer.Option(
            "--init",
            help="Where it starts: imagenet (Keras downloads it), none, a .weights.h5 without top, or a model's folder.",
        ),
    ] = "imagenet",
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Options from a JSON file, or another run's run.json.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One option of the recipe; may be repeated.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="As --set epochs=N.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="As --set batch=N.")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Side of the crop in px; as --set size_px=N.")] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="grouped, validation, seed, foldK/N or teacherK/N; as --set split=NAME."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="As --set seed=N.")] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option("--teacher", help="The folder of a model or run to learn from; several are an ensemble."),
    ] = None,
    face_network: Annotated[
        list[Path] | None,
        typer.Option(
            "--face-network",
            help="A face-recognition network to learn from, faceres-deep.json or w600k_mbf.onnx, see the docs; both teach "
            "better than one.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=10, help="Use only so many pictures, drawn at random.")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="The model's name in its manifest; the run folder's where left out.")
    ] = "",
    finish: Annotated[
        bool, typer.Option("--finish", help="Train no more: make the model of a stopped run's best epoch.")
    ] = False,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Train a model on labelled faces: a run folder with the model in it, ready to serve."""
    from training.dataset import load_faces
    from training.recipe import make_recipe, parse_settings, read_recipe

    shortcuts = {"epochs": epochs, "batch": batch, "size_px": size, "split": split, "seed": seed}
    options = {
        **(read_recipe(recipe) if recipe else {}),
        **parse_settings(settings or []),
        **{key: value for key, value in shortcuts.items() if value is not None},
    }
    chosen = make_recipe(options)
    console = Console(stderr=True)
    with _progress(console) as begin:
        faces = load_faces(data, chosen.crop, limit=limit, progress=begin("cutting faces"))
    _tell_left_out(console, faces)
    _quiet_tensorflow(threads)
    from training.face_network import draw_pairs, see_faces
    from training.train import read_history, split_of
    from training.train import train as run

    parts = split_of(faces, chosen)
    with _progress(console) as begin:
        seen = None
        if face_network:
            pairs = draw_pairs(faces, parts.train, chosen)
            seen = see_faces(face_network, data, faces, pairs=pairs, begin=begin)
    more = f" and {len(seen.blends):,} blends" if seen and len(seen.blends) else ""
    console.print(
        f"{len(parts.train):,} faces to train{more}, {len(parts.validation):,} to choose, {len(parts.test):,} for the test"
    )
    with Progress(
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[says]}"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("train", total=None, epoch=0, epochs=chosen.epochs, says="first step: compiling")

        def watch(epoch: int, step: int, steps: int, figures: dict[str, float]) -> None:
            says = f"loss {figures['loss']:.2f} age {figures['age_mae']:.2f} gender {figures['gender_accuracy']:.0%}"
            bar.update(
                task,
                completed=step,
                total=steps,
                epoch=epoch,
                says=f"{says} ethnicity {figures['ethnicity_accuracy']:.0%}",
            )

        def tell(row: dict[str, float]) -> None:  # lines that stay, also where the output is a file
            console.print(
                f"epoch {row['epoch']:.0f}/{chosen.epochs}: validation age MAE {row['val_age_mae']:.2f} MSE "
                f"{row['val_age_mse']:.1f}, gender {row['val_gender_accuracy']:.1%}, ethnicity "
                f"{row['val_ethnicity_accuracy']:.1%}; {row['faces_per_s']:.0f} faces/s",
                highlight=False,
            )

        made = run(
            data,
            faces,
            chosen,
            out,
            init=init,
            teachers=teacher or [],
            seen=seen,
            limit=limit,
            workers=max(1, (os.cpu_count() or 2) - 1),
            name=name,
            finish=finish,
            watch=watch,
            tell=tell,
        )
    history = read_history(out)
    if find_spec("matplotlib"):
        from training.report import plot_history, require_matplotlib

        require_matplotlib()
        plot_history(history, out / "history.png")
    manifest = load_manifest(made)
    _show(console, f"{made}: {manifest.trained_on}", {"validation": manifest.figures})
    if len(parts.test):
        console.print(f"Once everything is chosen: demographics evaluate --data {data} --model {out} --part test")
    if as_json:
        _print_json(
            {"model": str(made), "digest": manifest.digest, "figures": manifest.figures, "epochs": len(history)}
        )


def evaluate(
    *,
    data: Data,
    model: Annotated[Path, typer.Option("--model", help="A model's folder, or a run's.")] = DEFAULT_MODEL,
    part: Annotated[
        str, typer.Option("--part", help="Which faces: all, or the split's train, validation or test.")
    ] = "all",
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="The split that --part is of; the run's own where --model is a run, else grouped."
        ),
    ] = None,
    split_seed: Annotated[int | None, typer.Option("--split-seed", min=0, help="What the split was drawn by.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Measure only so many faces, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the faces of --limit and the bootstrap.")] = 0,
    robustness: Annotated[
        int,
        typer.Option(
            "--robustness", min=0, help="Faces for the curves over blur, size, JPEG and light; 0 leaves them out."
        ),
    ] = 400,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write report.md, plots, JSON and a CSV of every face there.")
    ] = None,
    threads: Threads = 0,
    engine: Annotated[
        str, typer.Option("--engine", help=f"What runs the model: auto, {', '.join(ENGINES)}.")
    ] = "tensorflow",
    as_json: AsJson = False,
) -> None:
    """Measure a model on labelled faces, cut and read as the live system does."""
    from training.report import require_matplotlib, write_report

    if part not in PARTS:
        raise ConfigError(f"part {part!r}: not one of {', '.join(PARTS)}")
    if engine not in {"auto", *ENGINES}:
        raise ConfigError(f"engine {engine!r}: not one of auto, {', '.join(ENGINES)}")
    if part == "all" and (split is not None or split_seed is not None):
        raise ConfigError("split: say with --part which part of it is meant: train, validation or test")
    if out is not None:
        require_matplotlib()
    folder, run = _model_folder(model)
    manifest = load_manifest(folder)
    console = Console(stderr=True)
    with _progress(console) as begin:
        wanted = _Wanted(part, split, split_seed, limit, seed)
        faces = _faces_of_part(data, manifest, run, wanted, begin=begin, console=console)
        _tell_left_out(console, faces)
        _quiet_tensorflow()
        from inference.engines import load_engine
        from training.evaluation import evaluate_faces, write_faces

        predictor = load_engine(
            cast("EngineName", engine), folder, threads=threads, say=lambda what: console.print(f"{what} ...")
        )
        found, heads = evaluate_faces(predictor, manifest, faces, robustness=robustness, seed=seed, progress=begin)
    found["data"], found["part"], found["engine"] = str(data), part, predictor.name
    if out is not None:
        history = _history(model) if run else []
        report = write_report(out, found, heads, faces, history)
        (out / "report.json").write_bytes(_json(found))
        write_faces(out / "faces.csv", faces, heads)
        console.print(f"Report: {report}")
    _show(
        console,
        f"{manifest.name} ({manifest.digest}) on {data}, {part}, by {predictor.name}",
        {"all": found, **found["by"]["age_band"], **found["by"]["ethnicity"]},
    )
    if as_json:
        _print_json(found)


def export(
    *,
    model: Annotated[
        Path, typer.Option("--model", help="A run's folder, a model's folder, or a .keras file.")
    ] = DEFAULT_MODEL,
    out: Out,
    formats: Annotated[
        str, typer.Option("--formats", help="Beside Keras, by commas: saved_model, onnx, litert, litert_int8; or none.")
    ] = "saved_model,onnx,litert,litert_int8",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Faces to calibrate int8 and to compare with; the demo's cast where left out."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="The manifest of a .keras file that has none beside it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's folder: Keras, SavedModel, ONNX, LiteRT float and int8, each compared with the original."""
    _quiet_tensorflow()
    from training.export import check_export, export_model, open_model

    console = Console(stderr=True)
    wanted = [each.strip() for each in formats.split(",") if each.strip() not in {"", "none"}]
    check_export(out, wanted)
    network, about, weights = open_model(model, manifest)
    found = export_model(
        network,
        about,
        out,
        formats=wanted,
        weights=weights,
        data=data,
        say=lambda what: console.print(f"writing {out}: {what}"),
    )
    table = Table("format", "bytes", "age, mean difference", "gender agrees", "ethnicity agrees")
    for name, each in found.items():
        same = each["agreement"]
        table.add_row(
            name,
            f"{each['bytes']:,}",
            f"{same['age_mean_difference']:.4f}",
            f"{same['gender_agreement']:.2%}",
            f"{same['ethnicity_agreement']:.2%}",
        )
    console.print(table)
    if as_json:
        _print_json({"model": str(out), "digest": load_manifest(out).digest, "formats": found})


class _Wanted(NamedTuple):
    """Which faces are to be measured, as the options say."""

    part: str
    split: str | None
    split_seed: int | None
    limit: int | None
    seed: int


def _faces_of_part(
    data: Path,
    manifest: Manifest,
    run: dict[str, Any] | None,
    wanted: _Wanted,
    *,
    begin: Callable[[str], Any],
    console: Console,
) -> Faces:
    """Load the faces that are to be measured. Raises ConfigError where a run's own split is asked of other data."""
    from training.dataset import load_faces
    from training.recipe import Recipe
    from training.splits import split_faces

    tell = begin("cutting faces")
    if wanted.part == "all":
        faces = load_faces(data, manifest.crop, limit=wanted.limit, seed=wanted.seed, progress=tell)
        if run and run["data"]["digest"] == faces.digest:
            console.print(
                "[yellow]This model was trained on some of these faces; --part test has those that were not.[/]"
            )
        return faces
    # A run that was made on a drawn part of the data is measured on that part again.
    drawn = run["data"]["drawn"] if run else None
    faces = load_faces(data, manifest.crop, limit=drawn, progress=tell)
    own = run["recipe"] if run else {}
    if run and wanted.split is None and run["data"]["digest"] != faces.digest:
        raise ConfigError(
            f"data {data}: not what {manifest.name} was trained on, so its split means nothing here; leave --part out"
        )
    default = Recipe()
    split = split_faces(
        wanted.split or str(own.get("split", default.split)),
        hashes=faces.hashes,
        age=faces.age,
        gender=faces.gender,
        ethnicity=faces.ethnicity,
        seed=int(own.get("split_seed", default.split_seed)) if wanted.split_seed is None else wanted.split_seed,
    )
    rows = split._asdict()[wanted.part]
    if not len(rows):
        raise ConfigError(f"part {wanted.part}: no faces in it; choose another part or split")
    if wanted.limit is not None and wanted.limit < len(rows):
        rows = np.sort(np.random.default_rng(wanted.seed).permutation(rows)[: wanted.limit])
    return faces.take(rows)


def _model_folder(model: Path) -> tuple[Path, dict[str, Any] | None]:
    """Find the model's folder, and the run it belongs to, if any. Raises ConfigError."""
    if (model / MANIFEST_NAME).is_file() or not (model / "run.json").is_file():
        return model, None
    if not (model / "model").is_dir():
        raise ConfigError(
            f"model {model}: the run is not finished; let `demographics train` end, or export what it has"
        )
    try:
        return model / "model", msgspec.json.decode((model / "run.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"model {model}: run.json is damaged ({error}); name {model / 'model'} instead") from error


def _history(run: Path) -> list[dict[str, float]]:
    try:
        return msgspec.json.decode((run / "history.json").read_bytes(), type=list[dict[str, float]])
    except (OSError, msgspec.MsgspecError):
        return []


def _quiet_tensorflow(threads: int = 0) -> None:
    """Set what TensorFlow reads once, when it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it says that there is no GPU, four times
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if threads and os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        with suppress(RuntimeError):  # it has started already in this process: it keeps the threads it has
            tf.config.threading.set_intra_op_parallelism_threads(threads)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Show a bar per piece of work; gives a function from the work's name to its progress function."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:

        def begin(what: str) -> Callable[[int, int], None]:
            tasks: list[Any] = []

            def update(done: int, of: int) -> None:
                if not tasks:
                    tasks.append(bar.add_task(what, total=of))
                bar.update(tasks[0], completed=done)

            return update

        yield begin


def _tell_left_out(console: Console, faces: Faces, most: int = 10) -> None:
    """List what was left out, and count the faces that the detector did not find."""
    if faces.rejected:
        console.print(f"[yellow]{len(faces.rejected):,} pictures left out:[/]")
        for each in faces.rejected[:most]:
            console.print(f"  {each.name}: {each.reason}", markup=False, highlight=False)
        if len(faces.rejected) > most:
            console.print(f"  and {len(faces.rejected) - most:,} more")
    console.print(f"{len(faces):,} faces; in {faces.not_found:,} the detector found none, so their centre is taken")


def _show(console: Console, title: str, rows: dict[str, Any]) -> None:
    table = Table("", "faces", "age MAE", "age MSE", "gender", "ethnicity", title=title)
    for name, each in rows.items():
        age = (f"{each['age_mae']:.2f}", f"{each['age_mse']:.1f}")
        table.add_row(
            name, f"{each['n']:,.0f}", *age, f"{each['gender_accuracy']:.1%}", f"{each['ethnicity_accuracy']:.1%}"
        )
    console.print(table)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _print_json(value: object) -> None:
    typer.echo(_json(value), nl=False)
