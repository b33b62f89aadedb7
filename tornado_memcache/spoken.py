"""Whether the server of a pool speaks meta, as its version tells.

Knows versions, the line in which meta commands wait for the answer, and that
a server may be another one once a connection to it was lost. It must not know
connections, nor what is asked. A block that is sent to a server without the
dialect would be taken for commands, so no meta command leaves before.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Protocol as Structure

from . import deadlines
from .errors import ClientError, MemcacheError, MetaUnsupported, Timeout, shown
from .lanes import Line
from .meta import version_of
from .outcomes import version
from .protocol import Request, Slot
from .retry import failure_for
from .slots import slot_for


class Asking(Structure):
    """What a pool does for it."""

    name: str
    losses: int

    def ask_first(self, slot: Slot) -> None: ...
    def end(self, slot: Slot, error: MemcacheError) -> None: ...
    def reconsider(self) -> None: ...


class Question:
    """What waits for a version, as long as it is ``wanted``."""

    def __init__(
        self, wanted: Callable[[], bool], answered: Callable[[str | MemcacheError], None]
    ) -> None:
        #: Once nobody wanted it, it is not asked any more: another one is.
        self.over = False
        self.slot: Slot | None = None
        self._wanted = wanted
        self._answered = answered

    def done(self) -> bool:
        self.over = self.over or not self._wanted()
        return self.over

    def exception(self) -> None:
        return None

    def set_result(self, told: str) -> None:
        self.over = True
        self._answered(told)

    def set_exception(self, error: MemcacheError) -> None:
        self.over = True
        self._answered(error)


class Spoken:
    """What is known of the server of one pool, and who waits in its ``line`` to know it."""

    def __init__(
        self, pool: Asking, line: Line, length: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        #: As the server has told it, empty if it told none; `known` says whether it did.
        self.version = ""
        self._numbers: tuple[int, ...] = ()
        #: The pool's losses when it was told.
        self._known_at = -1
        self._question: Question | None = None
        self._pool, self._line, self._length, self._loop = pool, line, length, loop

    @property
    def known(self) -> bool:
        """True until a connection is lost: who answers then may be another."""
        return self._known_at == self._pool.losses

    def knows(self, slot: Slot) -> bool:
        """True if the server is known to understand ``slot``."""
        return slot.needs is None or (self.known and self._numbers >= slot.needs)

    def refusal(self, slot: Slot) -> MetaUnsupported | None:
        """Returns why ``slot`` is never sent to the server as it is known, None if it may be."""
        if slot.needs is None or not self.known or self._numbers >= slot.needs:
            return None
        told = f"is version {shown(self.version)}" if self.version else "tells no version"
        needs = ".".join(map(str, slot.needs))
        return MetaUnsupported(
            f"{slot.asked()}: the server {told}, and this needs memcached {needs} or newer; "
            "commands like get and set go on working with it",
            server=self._pool.name,
        )

    def ask(self) -> None:
        """Has the server asked for its version, before all that waits, unless it is being asked."""
        question = self._question
        if question is not None and not question.over:
            assert question.slot is not None
            self._line.bring_forward(question.slot)
            return
        question = self._question = Question(self._wanted, self._answered)
        deadline = deadlines.clock() + self._length
        question.slot = slot_for(Request(b"version"), question, version, deadline)
        self._pool.ask_first(question.slot)

    def _wanted(self) -> bool:
        return any(slot.needs is not None and slot.awaited() for slot in self._line)

    def _answered(self, answer: str | MemcacheError) -> None:
        if isinstance(answer, ClientError):
            answer = ""  # (whatever it is, it does not say that it knows meta)
        if isinstance(answer, str):
            self.version, self._numbers = answer, version_of(answer) or ()
            self._known_at = self._pool.losses
        # On a later tick: slots are being delivered, or fail.
        self._loop.call_soon(self._go_on, answer, context=Context())

    def _go_on(self, answer: str | MemcacheError) -> None:
        """Ends who waits in vain; the others are served, or ask again, after a timeout."""
        if isinstance(answer, str):
            for slot in self._line.take(lambda slot: self.refusal(slot) is not None):
                refusal = self.refusal(slot)
                assert refusal is not None
                self._pool.end(slot, refusal)
        elif not isinstance(answer, Timeout):
            for slot in self._line.take(lambda slot: slot.needs is not None):
                self._pool.end(slot, failure_for(slot, answer))
        self._pool.reconsider()

    def __repr__(self) -> str:
        return f"<Spoken {self.version if self.known else 'unknown'}>"
