"""The commands of a chaos run: how each is given, and what its outcome tells.

Knows the methods of the client, `Request` and `Reply`, and what becomes of
each key by them, as the steps of ``chaos_values``. It must not know callers,
boundaries or styles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tornado_memcache import Client, MemcacheError, MetaItem, Reply, Request

from .chaos_values import ANSWERED, NEVER, UNKNOWN, WRITTEN, Step

#: What a get is asked to give on a miss, now and then.
MISSING = "(missing)"

_ANSWERS = {
    b"STORED": True,
    b"NOT_STORED": False,
    b"EXISTS": False,
    b"DELETED": True,
    b"TOUCHED": True,
    b"": True,
}
_STORES = ("set", "add", "replace", "append", "prepend", "cas")


@dataclass
class Command:
    """One command for one key. ``raw`` sends it through `Client.request`."""

    verb: str
    key: str
    value: Any = None
    exptime: int = 0
    noreply: bool = False
    raw: bool = False
    #: It is sent as the meta command that does the same (`META`).
    meta: bool = False
    default: Any = None
    #: For cas: what gets returned.
    token: Any = None
    expected: Any = None

    def __str__(self) -> str:
        size = f" {len(self.value)} bytes" if isinstance(self.value, (bytes, str)) else ""
        way = "request " * self.raw + "meta " * self.meta
        return f"{way}{self.verb} {self.key}{size}{' noreply' * self.noreply}"

    def begin(self, client: Client, **how: Any) -> Any:
        """Makes the call; returns what the client returns."""
        if self.raw:
            return client.request(self.request(), **how)
        if self.meta:
            return META[self.verb](client, self, how)
        verb, key = self.verb, self.key
        method: Callable[..., Any] = getattr(client, verb)
        if verb == "cas":
            return method(key, self.value, self.token, exptime=self.exptime, **how)
        if verb in ("append", "prepend") or (verb in _STORES and self.noreply):
            return method(key, self.value, noreply=self.noreply, **how)
        if verb in _STORES:
            return method(key, self.value, self.exptime, **how)
        if verb == "get":
            return method(key, self.default, **how)
        if verb == "gat":
            return method(key, self.exptime, self.default, **how)
        if verb in ("gats", "touch"):
            return method(key, self.exptime, **how)
        if verb in ("incr", "decr"):
            return method(key, self.value, **how)
        return method(key, **how)

    def request(self) -> Request:
        """Returns it as bytes and integers."""
        verb, keys = self.verb.encode(), (self.key.encode(),)
        if self.verb in ("incr", "decr"):
            return Request(verb, keys, delta=self.value, noreply=self.noreply)
        value, flags = self.value, 0
        if isinstance(value, str):
            value, flags = value.encode(), 16
        elif isinstance(value, int):
            value, flags = b"%d" % value, 2
        return Request(
            verb,
            keys,
            value or b"",
            flags,
            self.exptime if self.verb not in ("append", "prepend") else 0,
            int(self.token or 0),
            noreply=self.noreply,
        )

    def answer(self, result: Any) -> Any:
        """Returns the outcome in the words of `Step`: a value, True, False, None, a number."""
        if self.raw:
            return self._answer_of(result)
        if self.meta and self.verb == "delete":
            return bool(result)
        if isinstance(result, MetaItem):
            return result.value
        if self.verb in ("gets", "gats"):
            return result[0]
        return None if result == MISSING else result

    def _answer_of(self, reply: Reply) -> Any:
        if reply.status == b"NUMBER":
            return reply.number
        if reply.status == b"NOT_FOUND":
            return False if self.verb in ("delete", "touch") else None
        if reply.status != b"END":
            return _ANSWERS[reply.status]
        item = reply.items.get(self.key.encode())
        if item is None:
            return None
        try:
            return {0: bytes, 2: int, 16: bytes.decode}[item.flags](item.value)
        except (KeyError, ValueError):
            return item.value  # (the flags are not what they were)

    def step(self, ended: str | None, result: Any) -> Step:
        """Returns what its outcome tells: ``ended`` and ``result`` as those of `Call`."""
        value = self.value
        if self.verb == "set" and self.exptime < 0:
            value = None
        step = Step(self.verb, value, self.expected)
        if ended == "value":
            step.known = WRITTEN if self.noreply else ANSWERED
            step.answer = self.answer(result)
        elif step.reads or (ended == "failed" and not result.maybe_applied):
            step.known = NEVER
        else:
            step.known = UNKNOWN
        return step


def _meta_set(client: Client, one: Command, how: dict[str, Any]) -> Any:
    return client.meta_set(one.key, one.value, one.exptime, mode=one.verb, **how)  # type: ignore[arg-type]


def _meta_count(client: Client, one: Command, how: dict[str, Any]) -> Any:
    return client.meta_arithmetic(one.key, one.value, mode=one.verb, **how)  # type: ignore[arg-type]


#: How a command is made as a meta command.
META: dict[str, Callable[[Client, Command, dict[str, Any]], Any]] = {
    "get": lambda client, one, how: client.meta_get(one.key, hit_before=True, **how),
    "gat": lambda client, one, how: client.meta_get(one.key, touch=one.exptime, **how),
    **dict.fromkeys(("set", "add", "replace", "append", "prepend"), _meta_set),
    "delete": lambda client, one, how: client.meta_delete(one.key, opaque="o", **how),
    **dict.fromkeys(("incr", "decr"), _meta_count),
}


@dataclass
class Several:
    """One call for several keys: get_multi, gets_multi, set_multi, delete_multi, request_many.

    And the quiet batches: meta_get_multi and meta_delete_multi.
    """

    verb: str
    commands: list[Command]

    def __str__(self) -> str:
        return f"{self.verb} of {len(self.commands)}: {self.commands[0]}"

    def begin(self, client: Client, **how: Any) -> Any:
        if self.verb == "request_many":
            return client.request_many([one.request() for one in self.commands], **how)
        if self.verb == "set_multi":
            return client.set_multi({one.key: one.value for one in self.commands}, **how)
        method: Callable[..., Any] = getattr(client, self.verb)
        return method([one.key for one in self.commands], **how)

    def steps(self, ended: str | None, result: Any) -> list[Step]:
        """Returns what its outcome tells of each key, in the order of ``commands``."""
        told = [self._told(index, ended, result) for index in range(len(self.commands))]
        steps = [one.step(*end) for one, end in zip(self.commands, told)]
        for step in steps:
            if self.verb.endswith("delete_multi") and step.known == ANSWERED:
                # (which of the two it was is not told, only that there is nothing now)
                step.verb, step.value, step.answer = "set", None, True
        return steps

    def _told(self, index: int, ended: str | None, result: Any) -> tuple[str | None, Any]:
        command = self.commands[index]
        if ended == "failed" and not command.verb.startswith("get"):
            return "cancelled", None  # (it is the error of one part: others may have applied)
        if ended != "value":
            return ended, result
        if self.verb == "request_many":
            one = result[index]
            return ("failed" if isinstance(one, MemcacheError) else "value"), one
        if self.verb in ("set_multi", "delete_multi", "meta_delete_multi"):
            return ("cancelled", None) if command.key in result else ("value", True)
        if command.key in result:
            return "value", result[command.key]
        # Which server the key belongs to is not told: a miss counts if all answered.
        miss = (None, None) if self.verb == "gets_multi" else None
        return ("cancelled", None) if result.errors else ("value", miss)
