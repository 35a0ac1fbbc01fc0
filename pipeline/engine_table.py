"""`demographics engines`: what may run the model on this machine, how far each agrees and how fast it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from inference.engines import ranked, try_engines
from pipeline.manifest import ENGINES, load_manifest
from pipeline.settings import Settings


def engines_document(settings: Settings, model: Path | None, *, again: bool = False) -> dict[str, Any]:
    """Try the engines, or read what is known of them: plain values, for JSON. Raises ConfigError."""
    folder = model or settings.inference.model
    console = Console(stderr=True)
    with console.status("looking for engines") as status:
        trials = try_engines(
            folder,
            threads=settings.inference.threads,
            max_batch=settings.inference.max_batch,
            say=status.update,
            anew=again,
        )
    wanted, best = settings.inference.engine, ranked(trials)
    tried = {trial.engine: msgspec.to_builtins(trial) for trial in trials}
    return {
        "model": load_manifest(folder).digest,
        "setting": wanted,
        "chosen": wanted if wanted != "auto" else best[0].engine if best else None,
        "batch": settings.inference.max_batch,
        "engines": [tried.get(name, {"engine": name, "problem": "not installed"}) for name in ENGINES],
    }


def show_engines(document: dict[str, Any]) -> None:
    """Show it as a table on stderr."""
    table = Table(
        "engine", f"faces/s, {document['batch']} at once", "one at a time", "age differs, years", "agrees", "problem",
        title=f"model {document['model']}, setting {document['setting']}", title_justify="left",
    )  # fmt: skip
    for each in document["engines"]:
        agreement = each.get("agreement")
        figures = ("", "", "", "")
        if agreement:
            figures = (
                f"{each['faces_per_s']:,.0f}",
                f"{each['single_faces_per_s']:,.0f}",
                f"{agreement['age_mean_difference']:.4f}",
                "yes" if each["agrees"] else "no",
            )
        name = f"[bold]{each['engine']}[/]" if each["engine"] == document["chosen"] else each["engine"]
        table.add_row(name, *figures, each.get("problem") or "")
    Console(stderr=True).print(table)
