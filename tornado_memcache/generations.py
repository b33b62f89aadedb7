"""Which generation a namespace is at: a random word that a server keeps.

Knows the key of that word, how it is asked for, once for all who wait, and
how a new one takes its place. It must not know a command, nor what is kept
under a generation.
"""

import re
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from .chain import Ask, Chain, Steps
from .cluster import Cluster
from .deadlines import clock
from .errors import MemcacheError, SerializationError, Timeout, TooManyCalls, shown
from .outcomes import stored
from .pool import Pool
from .protocol import Reply, Request
from .settings import Settings

#: What stands behind a namespace's name in the key of its word.
SUFFIX = b":generation"
#: How long a word is: 72 random bits. (Never a number that grows: what is counted anew after
#: the word was lost would come to an old generation again.)
WORD_BYTES = 12
_WORD = re.compile(rb"[A-Za-z0-9_-]{%d}" % WORD_BYTES)


def fresh_word() -> bytes:
    """Returns a word that was never used."""
    return secrets.token_urlsafe(WORD_BYTES * 3 // 4).encode()


class Caller(Protocol):
    """A call that waits for the word."""

    #: The moment by which it has to have its outcome.
    own_deadline: float

    def go(self, word: bytes) -> None:
        """Takes the word: the call goes on under it."""

    def fail(self, error: MemcacheError) -> None:
        """Takes why there is none."""


class Asking:
    """What waits for the replies of one asking, for all of ``callers``."""

    chain: Chain

    def __init__(
        self, callers: dict[Caller, None], changes: int, ended: Callable[["Asking", Any], None]
    ) -> None:
        self.callers = callers
        self.changes = changes
        self.begun = clock()
        self.own_deadline = max(caller.own_deadline for caller in callers)
        self.over = False
        self._ended = ended

    def done(self) -> bool:
        return self.over

    def exception(self) -> None:
        return None

    def set_result(self, word: bytes) -> None:
        self.over = True
        self._ended(self, word)

    def set_exception(self, error: MemcacheError) -> None:
        self.over = True
        self._ended(self, error)

    def expire(self) -> None:
        """The last moment has come in which any of its first callers waits."""
        self.chain.expire()


class Generation:
    """What a client knows of one namespace's generation.

    ``name`` is that of the namespace, with the client's prefix. The word
    is asked for where its key belongs, dead or not: a server that stands
    in for a dead one knows no generation, and the dead one would come
    back with an old one.
    """

    def __init__(self, cluster: Cluster, settings: Settings, name: bytes) -> None:
        self.name = name
        self.key = name + SUFFIX
        self._cluster = cluster
        self._settings = settings
        self._word: bytes | None = None
        #: What is known was asked for at this moment.
        self._asked_at = 0.0
        #: How often this client has put a new word there.
        self._changes = 0
        self._loop: object = None
        self._asking: Asking | None = None
        #: When the last asking was begun that came to no word, and what stands in for that.
        self._failed_at = self._alone_at = 0.0
        self._alone: bytes | None = None
        #: Those for whom the asking under way was begun too early.
        self._behind: dict[Caller, None] = {}

    def known(self, age: float) -> bytes | None:
        """Returns the word, None unless it was asked for less than ``age`` seconds ago.

        While anybody waits for it nobody has it: a call does not overtake
        an earlier one.
        """
        if self._word is None or self._asking is not None or clock() >= self._asked_at + age:
            return None
        return self._word

    # -- asking

    def ask(self, caller: Caller, age: float) -> None:
        """Has ``caller`` told the word, or why there is none, on a later tick.

        Nobody is told a word that was asked for more than ``age`` seconds
        before he asks, nor one that was asked for before this client's
        last new one was there: he waits for the next asking, which is
        begun when the one under way has ended.
        """
        loop = self._cluster.ready()
        if loop is not self._loop:  # (what a closed loop had under way went with it)
            self._loop, self._asking, self._behind = loop, None, {}
        asking = self._asking
        if asking is None:
            self._begin({caller: None})
            return
        if len(asking.callers) + len(self._behind) >= self._settings.max_pending:
            told = f"{len(asking.callers) + len(self._behind)} calls are under way (max_pending)"
            self._failed_at = clock()
            loop.call_soon(caller.fail, TooManyCalls(told, server=self._home().name))
        elif self._behind or asking.changes != self._changes or clock() >= asking.begun + age:
            self._behind[caller] = None
        else:
            asking.callers[caller] = None

    def _home(self) -> Pool:
        return self._cluster.home_of(self.key)

    def _begin(self, callers: dict[Caller, None]) -> None:
        cluster = self._cluster
        assert cluster.loop is not None and cluster.deadlines is not None
        asking = self._asking = Asking(callers, self._changes, self._ended)
        cluster.deadlines.add(asking, asking.own_deadline, asking)
        asking.chain = Chain(
            asking,
            self._steps(),
            _word_of,
            Request(b"get", (self.key,)).asked(),
            cluster.loop,
            cluster.deadlines,
            self._settings.request_timeout,
            partial(_forget, cluster, asking),
        )
        asking.chain.start()

    def _steps(self) -> Steps:
        """Asks for the word; where there is none, tries to be the one who puts one there."""
        get = Request(b"get", (self.key,))
        while True:
            reply = yield from self._one(get)
            if self.key in reply.items:
                return Reply(b"END", text=self._checked(reply.items[self.key].value))
            word = fresh_word()
            reply = yield from self._one(Request(b"add", (self.key,), word))
            if stored(reply):
                return Reply(b"END", text=word)

    def _one(self, request: Request) -> Steps:
        (reply,) = yield [Ask(self._home(), request, self._settings.request_timeout)]
        if isinstance(reply, MemcacheError):
            raise reply
        return reply

    def _checked(self, word: bytes) -> bytes:
        if _WORD.fullmatch(word) is None:
            raise SerializationError(
                f"key {shown(self.key)} holds no generation: something else was stored under it"
            )
        return word

    def _ended(self, asking: Asking, outcome: Any) -> None:
        """The asking has come to a word, or to an error."""
        self._asking = None
        callers, now = asking.callers, clock()
        if isinstance(outcome, Timeout):  # (that of the first callers; others may wait longer)
            patient = [caller for caller in callers if caller.own_deadline > now]
            self._behind.update(dict.fromkeys(patient))
            callers = {one: None for one in callers if one not in self._behind}
        elif not isinstance(outcome, MemcacheError) and asking.changes == self._changes:
            self._word, self._asked_at, self._alone = outcome, asking.begun, None
        if isinstance(outcome, MemcacheError):
            self._failed_at = asking.begun
        self._next()
        for caller in callers:
            if isinstance(outcome, MemcacheError):
                caller.fail(outcome)
            else:
                caller.go(outcome)

    def _next(self) -> None:
        if self._behind and self._asking is None:
            behind, self._behind = self._behind, {}
            self._begin(behind)

    def alone(self, age: float) -> bytes:
        """Returns the word of those who go on without one: nobody else finds what is under it.

        It is the same for all whose asking was begun within ``age`` seconds,
        as that of the server would be.
        """
        since, failed_at = self._alone_at, self._failed_at
        if self._alone is None or (failed_at != since and failed_at >= since + age):
            self._alone, self._alone_at = fresh_word(), failed_at
        return self._alone

    def leave(self, caller: Caller) -> None:
        """Notes that ``caller`` waits no more. Nothing is asked for nobody."""
        self._behind.pop(caller, None)
        asking = self._asking
        if asking is None or asking.callers.pop(caller, caller) is caller or asking.callers:
            return
        self._asking, asking.over = None, True
        asking.chain.waiter_left(asking)
        self._next()

    def failure(self) -> Timeout:
        """Returns what a call is told whose time is up while it waits here."""
        if self._asking is None:
            return Timeout("timed out", phase="waiting")
        return self._asking.chain.failure()

    # -- a new one

    def renewal(self) -> tuple[Pool, Request, Callable[[Reply], Any]]:
        """Returns whom to ask for a new generation, what, and what makes the outcome of it."""
        word, begun = fresh_word(), clock()
        return self._home(), Request(b"set", (self.key,), word), partial(self._new, word, begun)

    def _new(self, word: bytes, begun: float, reply: Reply) -> Any:
        there = stored(reply)
        if there:
            self._changes += 1
            self._word, self._asked_at, self._alone = word, begun, None
        return there

    def forget(self) -> None:
        """Forgets what is known: a new word is on its way, and nobody knows which is there."""
        self._word = self._alone = None

    def __repr__(self) -> str:
        if self._asking is not None:
            return f"asked for {len(self._asking.callers) + len(self._behind)} calls"
        if self._word is None:
            return "generation not known"
        return f"generation known since {max(0.0, clock() - self._asked_at):.1f} s"


def _word_of(reply: Reply) -> bytes:
    return reply.text


def _forget(cluster: Cluster, asking: Asking, chain: Chain) -> None:
    if cluster.deadlines is not None:
        cluster.deadlines.remove(asking, asking)
