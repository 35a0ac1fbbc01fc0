"""Addresses without their secrets: nothing that a camera's URL carries reaches a log, a metric, an error or a page."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any, Final

HIDDEN: Final = "***"

# Everything up to the last @ before the path: a password may hold an @ that nobody escaped.
_USERINFO: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s?#\"']*@")
_SECRET_PARAMETER: Final = re.compile(
    r"(?P<name>[?&;](?:[\w.-]*(?:pass|pwd|token|secret|key|auth|user|login|sig)[\w.-]*)=)[^&;\s#\"']*", re.IGNORECASE
)


def redact(text: str) -> str:
    """Hide credentials in every address within *text*; what has none comes back as it is. Idempotent."""
    return _SECRET_PARAMETER.sub(rf"\g<name>{HIDDEN}", _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text))


def redact_parameters(text: str) -> str:
    """Hide what looks like a secret among the parameters of an address, and leave all else."""
    return _SECRET_PARAMETER.sub(lambda match: match[0] if match[0].endswith("=") else f"{match['name']}{HIDDEN}", text)


def redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact every text of a structlog event, exceptions included; the last processor before rendering."""
    for name, value in event.items():
        event[name] = _redact_value(value)
    return event


def _redact_value(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redact_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact_value(item) for item in value]
    if isinstance(value, (int, float, bool, type(None))):
        return value
    return redact(str(value))
