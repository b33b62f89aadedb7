"""Certificates for servers that are spoken to over TLS.

Knows trustme: an authority of the test's own, made anew for each run. It
must not know the package.
"""

from __future__ import annotations

import datetime
import functools
import ssl
from pathlib import Path
from typing import Any

import trustme


@functools.lru_cache(None)
def authority() -> trustme.CA:
    """The authority that the clients of the tests trust."""
    return trustme.CA()


def trusting(ca: trustme.CA | None = None) -> ssl.SSLContext:
    """Returns a client's context that verifies certificate and name by ``ca``."""
    context = ssl.create_default_context()
    (ca or authority()).configure_trust(context)
    return context


def issued(*names: str, ca: trustme.CA | None = None, expired: bool = False) -> trustme.LeafCert:
    """Returns a certificate that bears ``names``."""
    then = datetime.datetime(2020, 1, 1) if expired else None
    return (ca or authority()).issue_cert(*names, not_after=then)


def for_server(*names: str, **options: Any) -> ssl.SSLContext:
    """Returns a server's context with a certificate that bears ``names``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued(*names, **options).configure_cert(context)
    return context


def memcached_arguments(folder: Path, certificate: trustme.LeafCert, *more: str) -> list[str]:
    """Returns what makes a real memcached speak TLS with ``certificate``."""
    path = folder / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(path)
    options = ",".join((f"ssl_chain_cert={path}", f"ssl_key={path}", *more))
    return ["-Z", "-o", options]
