"""This client in callback style: no call is awaited."""

from __future__ import annotations

from . import ours


class Client(ours.Client):
    title = "this client, callbacks"
    style = "callback"
    kinds = frozenset({"gets"})
