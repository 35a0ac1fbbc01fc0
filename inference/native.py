"""Quiet for what libraries written in other languages say while they load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_native_stderr() -> Iterator[None]:
    """Silence what native code writes to stderr before any log level holds: that there is no GPU, four times, and the like.

    What goes wrong comes as an exception all the same.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
