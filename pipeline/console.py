"""What a run shows to people while it works: steps as they happen, then who has been counted, live.

Everything goes to stderr: stdout is for the report. Where stderr is no terminal, a line now and then says the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from aggregator.store import Snapshot
from aggregator.views import cameras_view, merged, tally_view
from pipeline.report import cameras_table, tally_table

PLAIN_INTERVAL_S: Final = 5.0


class Screen:
    """Steps while a run starts, then its live counts."""

    def __init__(self, title: str) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._said_at = 0.0
        self._live: Live | None = None
        self.console.print(f"[bold]{title}[/bold]")

    def step(self, text: str) -> None:
        """Say what is being done, with the seconds since the start."""
        self.console.print(f"[dim]{time.monotonic() - self._started:6.1f} s[/dim]  {text}")

    def __enter__(self) -> Self:
        """Begin the live part."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the live part."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, read: Callable[[], Snapshot], header: str) -> None:
        """Show the counts as they are now."""
        if self._live is not None:
            self._live.update(_picture(read(), header), refresh=True)
        elif time.monotonic() - self._said_at >= PLAIN_INTERVAL_S:
            self._said_at = time.monotonic()
            snapshot = read()
            counted = ", ".join(
                f"{name} {sum(tally.people.total() for tally in tallies.values())}"
                for name, tallies in snapshot.windows.items()
            )
            states = ", ".join(
                f"{status.camera_id} {status.state} {status.fps:.0f} fps" for status in snapshot.cameras.values()
            )
            self.step(f"visitors: {counted}; cameras: {states or 'none yet'}")


def _picture(snapshot: Snapshot, header: str) -> Group:
    columns = {name: tally_view(merged(tallies.values())) for name, tallies in snapshot.windows.items()}
    columns["ended, ever"] = tally_view(merged(snapshot.totals.values()))
    now = time.time()
    cameras = cameras_table(cameras_view(snapshot.cameras, now), now)
    return Group(tally_table("visitors first seen within the last ...", columns), cameras, Text.from_markup(header))
