"""Why a TLS connection is not made, in words: libraries say that nobody answers where a certificate was refused."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path


def certificate_fault(error: BaseException | None) -> str:
    """Say what is wrong with a certificate, where that is what *error*, or what it came from, is about; nothing otherwise."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message or "it cannot be verified"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return (
                str(error).partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "it cannot be verified"
            )
        error = error.__cause__ or error.__context__
    return ""


def handshake_fault(host: str, port: int, ca_file: Path | str | None, timeout_s: float = 3.0) -> str:
    """Try a TLS handshake; say what is wrong with it, and nothing where it works or nobody answers at all."""
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        return f"the file of the certificate authority cannot be used: {error.strerror or type(error).__name__}"
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLError as error:
        return (
            certificate_fault(error)
            or f"no TLS is spoken there: {(error.reason or 'unknown').replace('_', ' ').lower()}"
        )
    except OSError:
        return ""


def speaks_tls(host: str, port: int, timeout_s: float = 3.0) -> bool:
    """Tell whether TLS is spoken there, whoever it is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent: it is only asked
    try:
        with socket.create_connection((host, port), timeout_s) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False
