"""Values that tell whose they are, and what the owner of a key may find there.

Knows what memcached does to one key, and what is known of a write that was
not answered. Pure: it must not know a client, a loop or a clock; moments and
losses are handed in. `OwnedKey.judge` is where a wrong value is told
from one that nobody could have told apart (see ``chaos_callers``).
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: What fills a value up: a parser that frames by anything but the length trips over it.
_FILLING = b"\r\nEND\r\nVALUE k 0 1\r\nSTORED\r\n0123456789"
_HEAD = re.compile(rb"(\S+) (\d+) (\d+) ")
#: More possible states than this are not worth following.
MOST_STATES = 16


class Damaged(Exception):
    """Bytes that are no value of ours, or not any more."""


def make_value(key: str, nonce: int, size: int) -> bytes:
    """Returns a value of ``key`` that is like no other, with ``size`` bytes of filling."""
    filling = (_FILLING * (size // len(_FILLING) + 1))[:size]
    body = b"%b %d %d %b" % (key.encode(), nonce, size, filling)
    return b"%b %08x\n" % (body, zlib.crc32(body))


def read_value(data: bytes | str) -> list[tuple[str, int]]:
    """Returns the (key, nonce) of each part of a value: several after append and prepend."""
    if isinstance(data, str):
        try:
            data = data.encode("ascii")
        except UnicodeEncodeError:
            raise Damaged("not ASCII") from None
    parts, position = [], 0
    while position < len(data):
        head = _HEAD.match(data, position)
        if head is None:
            raise Damaged(f"no head at {position} of {len(data)}")
        end = head.end() + int(head[3])
        if data[end : end + 10] != b" %08x\n" % zlib.crc32(data[position:end]):
            raise Damaged(f"the checksum at {end} of {len(data)} is wrong")
        parts.append((head[1].decode("latin-1"), int(head[2])))
        position = end + 10
    return parts


def told(value: Any) -> str:
    """Returns ``value`` as a report may show it."""
    if isinstance(value, (bytes, str)):
        try:
            parts = " + ".join(f"{key}#{nonce}" for key, nonce in read_value(value))
        except Damaged as error:
            parts = f"damaged ({error}): {value[:80]!r}"
        return f"<{type(value).__name__} {parts}>"
    return repr(value)


# -- one key with one owner

#: What is known of a step: it was answered, written without a reply being owed,
#: it may have happened, it has not happened.
ANSWERED, WRITTEN, UNKNOWN, NEVER = "answered", "written", "unknown", "never"


@dataclass
class Step:
    """One command for one key, in the order in which its owner gave it.

    ``verb`` as the client's method; ``value`` is what it stores, adds or
    expects to be added; ``expected`` the value that a cas goes by.
    """

    verb: str
    value: Any = None
    expected: Any = None
    known: str = ANSWERED
    answer: Any = None
    #: The cas unique was stale already when the call was made.
    stale: bool = False

    @property
    def reads(self) -> bool:
        return self.verb in ("get", "gets", "gat", "gats")

    def __str__(self) -> str:
        value = f" {told(self.value)}" if self.value is not None else ""
        answer = f" -> {told(self.answer)}" if self.known == ANSWERED else f" ({self.known})"
        return f"{self.verb}{value}{answer}"


def applied(step: Step, state: Any) -> tuple[Any, Any]:
    """Returns what memcached makes of ``state``, and what it answers."""
    verb, value, there = step.verb, step.value, state is not None
    if verb == "set":
        return value, True
    if verb == "add":
        return (state, False) if there else (value, True)
    if verb == "replace":
        return (value, True) if there else (None, False)
    if verb == "append":
        return (state + value, True) if there else (None, False)
    if verb == "prepend":
        return (value + state, True) if there else (None, False)
    if verb == "cas":
        if not there:
            return None, None
        return (value, True) if _same(state, step.expected) else (state, False)
    if verb == "delete":
        return None, there
    if verb == "touch":
        return state, there
    if verb in ("incr", "decr"):
        if not there:
            return None, None
        number = state + value if verb == "incr" else max(0, state - value)
        return number, number
    return state, state


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _among(one: Any, states: Iterable[Any]) -> bool:
    return any(_same(one, state) for state in states)


def _add(states: list[Any], state: Any) -> None:
    if not _among(state, states):
        states.append(state)


class Moment(NamedTuple):
    """When something stood how: the clock, and which connections had been lost by then."""

    clock: float
    losses: tuple[Any, int]


@dataclass
class OwnedKey:
    """A key that one caller alone writes, and the states in which it may be.

    A write without an answer may have happened. It is settled by the next
    answer for the key as long as no connection was lost in between, since
    both went the same way. Otherwise its bytes may still lie somewhere and
    take effect at any later time, which no client can know: the key is
    ``retired``, and its owner takes a new one.
    """

    name: str
    #: What is stored under it: bytes, str or int.
    kind: type
    states: list[Any] = field(default_factory=lambda: [None])
    retired: bool = False
    #: The losses since which a write is unsettled, if one is.
    unsettled: tuple[Any, int] | None = None
    #: The moment of which ``states`` tells: the server may have lost them from then on.
    known_at: float = 0.0
    #: The last judgements, for a report.
    past: deque[tuple[Moment, list[Step], bool]] = field(default_factory=lambda: deque(maxlen=6))

    def judge(self, steps: list[Step], begun: Moment, ended: Moment, lost: bool) -> str | None:
        """Takes what ``steps`` came to; returns what is wrong with it, or None.

        They were given in this order, without waiting for each other. An
        earlier read may see what a later write has stored; it must not
        see what came before an earlier write. ``lost`` says that the
        server may have lost its items at some moment since ``known_at``.
        """
        if self.retired:
            return None
        since = self.unsettled or begun.losses
        moved = since != ended.losses
        for step in steps:
            if step.stale and step.answer is False:
                step.known = NEVER  # (the client said so by itself)
        pending = any(step.known in (WRITTEN, UNKNOWN) and not step.reads for step in steps)
        self.known_at = begun.clock
        if moved and (pending or self.unsettled is not None):
            self.retired = True
            return None
        before = list(self.states)
        self.past.append((ended, steps, lost))
        wrong = self._follow(steps, lost)
        if wrong is not None:
            self.retired = True
            possible = ", ".join(map(told, before))
            past = "".join(map(self._told_of, self.past))
            return f"{self.name}: {wrong}. Before: {possible}.{past}"
        last = max((i for i, step in enumerate(steps) if step.known == ANSWERED), default=-1)
        loose = [step for step in steps[last + 1 :] if step.known != NEVER and not step.reads]
        self.unsettled = since if loose or (last < 0 and self.unsettled is not None) else None
        self.retired = len(self.states) > MOST_STATES
        return None

    @staticmethod
    def _told_of(judgement: tuple[Moment, list[Step], bool]) -> str:
        moment, steps, lost = judgement
        where = f"{moment.clock:.3f}, {moment.losses[1]} connections lost{', lost' * lost}"
        return f"\n        by {where}: " + "; ".join(map(str, steps))

    def _follow(self, steps: list[Step], lost: bool) -> str | None:
        """Moves ``states`` through ``steps``; returns what does not fit."""
        states = self.states
        if lost:
            _add(states, None)
        after = []
        for index, step in enumerate(steps):
            following: list[Any] = []
            answers = any(later.known == ANSWERED for later in steps[index + 1 :])
            for state in states:
                new, answer = applied(step, state)
                if step.known == NEVER or step.reads:
                    _add(following, state)
                elif step.known == ANSWERED:
                    if _same(answer, step.answer):
                        _add(following, new)
                else:
                    if step.known == UNKNOWN or not answers:
                        _add(following, state)
                    _add(following, new)
            if not following:
                return f"{step} cannot be"
            if lost:
                _add(following, None)
            states = following
            after.append(states)
        for index, step in enumerate(steps):
            if step.reads and step.known == ANSWERED:
                possible = [state for later in after[index:] for state in later]
                if not _among(step.answer, possible):
                    return f"{step} cannot be"
        if steps and steps[-1].reads and steps[-1].known == ANSWERED:
            states = [steps[-1].answer]
            if lost:
                _add(states, None)
        self.states = states
        return None
