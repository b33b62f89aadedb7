"""emcache with its opt-in gathering of the gets of a tick."""

from __future__ import annotations

from . import emcache


class Client(emcache.Client):
    title = "emcache, autobatching"
    autobatching = True
    best = (
        "autobatching=True, max_connections=min_connections=32, one for one caller (2 by default, "
        "which are half as fast with sets among the gets), timeout=30"
    )
