"""emcache with its opt-in gathering of the gets of a tick."""

from __future__ import annotations

from . import emcache


class Client(emcache.Client):
    title = "emcache, autobatching"
    autobatching = True
    best = "autobatching=True, min_connections=max_connections=2 (its default maximum), timeout=30"
