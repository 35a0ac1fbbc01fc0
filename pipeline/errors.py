"""Everything that can go wrong on purpose.

PipelineError
├── ConfigError            the process cannot start as asked; every problem is listed at once
├── InvalidMessage         this record will never decode; dead-letter it and move on
└── TransportError         the network said no; safe to retry
    └── SourceLost         a camera or file gave nothing, or stopped; reconnect
        ├── SourceRefused      wrong or missing credentials
        ├── SourceNotFound     the host answers, the stream or file is not there
        ├── SourceUnreadable   what is there is not video that can be decoded
        ├── SourceUnreachable  nobody answers at that address
        ├── SourceStalled      the connection is open, and nothing comes
        ├── SourceTooFast      more comes than any camera sends
        └── SourceForbidden    this worker may not go to that address
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class PipelineError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(PipelineError):
    """The process cannot start as asked; `problems` lists everything that is wrong, each with what to do."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class InvalidMessage(PipelineError):  # noqa: N818  the name says what the record is
    """This record will never decode. `reason` is from the closed set REASONS, for metrics."""

    REASONS: ClassVar = ("schema", "checksum", "malformed", "image", "future", "key")

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in self.REASONS
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class TransportError(PipelineError):
    """The network said no; trying again is safe."""


class SourceLost(TransportError):  # noqa: N818  what happened, as one would say it
    """A camera or file gave nothing, or stopped. `reason` is a closed set, for metrics; the text says what to do."""

    reason: ClassVar[str] = "lost"


class SourceRefused(SourceLost):
    """The camera wants other credentials."""

    reason = "refused"


class SourceNotFound(SourceLost):
    """The host answers, but the stream or file is not there."""

    reason = "not_found"


class SourceUnreadable(SourceLost):
    """What is there is not video that can be decoded."""

    reason = "unreadable"


class SourceUnreachable(SourceLost):
    """Nobody answers at that address."""

    reason = "unreachable"


class SourceStalled(SourceLost):
    """The connection is open, and nothing comes."""

    reason = "stalled"


class SourceTooFast(SourceLost):
    """More comes than any camera sends."""

    reason = "too_fast"


class SourceForbidden(SourceLost):
    """This worker may not go to that address."""

    reason = "forbidden"


def source_reasons() -> tuple[str, ...]:
    """List every reason for which a camera can be lost: the closed set that metrics and states draw from."""

    def below(kind: type[SourceLost]) -> list[str]:
        return [kind.reason, *(reason for narrower in kind.__subclasses__() for reason in below(narrower))]

    return tuple(dict.fromkeys(below(SourceLost)))
