"""Prometheus' text format, written quickly: a scrape of 200 cameras is some ten thousand lines.

What it writes is what `prometheus_client.generate_latest` writes; a test holds it to that. That one sorts and escapes the labels
of every line anew, which takes more time than reading the counts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.utils import floatToGoString

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


def exposition(registry: CollectorRegistry) -> bytes:
    """Write every metric of *registry* in the text format of Prometheus."""
    lines: list[str] = []
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        lines.append(f"# HELP {name} {family.documentation.translate(_HELP_ESCAPES)}\n# TYPE {name} {family.type}\n")
        for sample in family.samples:
            value = sample.value
            whole = 0 <= value < 1e6 and value == int(value)  # the usual case, without a function call
            number = f"{int(value)}.0" if whole else floatToGoString(value)  # type: ignore[no-untyped-call]
            lines.append(f"{sample.name}{_labels(tuple(sample.labels.items()))} {number}\n")
    return "".join(lines).encode()


@lru_cache(maxsize=65536)  # the same at every scrape
def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    inside = ",".join([f'{name}="{value}"' for name, value in labels])
    if "\\" in inside or "\n" in inside or inside.count('"') != 2 * len(labels):
        inside = ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels])
    return f"{{{inside}}}"
