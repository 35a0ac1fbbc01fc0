"""Certificates for tests of TLS, made on the spot: an authority, a server's, and an authority that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme
from cryptography.hazmat.primitives import serialization


class Certificates(NamedTuple):
    """Paths of PEM files."""

    authority: Path
    stranger: Path  # an authority that has signed nothing here
    certificate: Path  # of the server, for 127.0.0.1
    key: Path
    both: Path  # certificate and key in PKCS 8, as Kafka wants them


def make_certificates(folder: Path, *, host: str = "127.0.0.1") -> Certificates:
    """Write them to *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(*(folder / f"{name}.pem" for name in Certificates._fields))
    authority = trustme.CA()
    server = authority.issue_cert(host)
    authority.cert_pem.write_to_path(str(made.authority))
    trustme.CA().cert_pem.write_to_path(str(made.stranger))
    chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
    made.certificate.write_bytes(chain)
    made.key.write_bytes(server.private_key_pem.bytes())
    key = serialization.load_pem_private_key(server.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made.both.write_bytes(key + chain)
    return made
