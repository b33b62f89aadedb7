"""Whether one server is taken for alive or for dead, and what the log says of it.

Knows silences, pauses, and the one line for each change of state. It must
not know connections or calls; the moments are given to it.
"""

import logging
import random

from .errors import AuthenticationError, MemcacheError, ServerDead

_log = logging.getLogger("tornado_memcache")

#: The first pause before a dead server is tried again, in seconds.
FIRST_PAUSE = 0.25
#: A server that died less than this many seconds ago is tried again after at most
#: `SHORT_PAUSE`: whoever is back from a short outage is in use again within a second.
SHORT_OUTAGE = 2.0
SHORT_PAUSE = 0.9
#: A server that failed is called well after this long without a failure.
QUIET = 1.0


class Health:
    """The judgement on one server.

    Death is judged by silences, not by calls: timeouts without a byte
    from the server between them count once, and a later request has to
    time out before the next one counts. Any byte makes the server alive.
    A dead server is tried again after `FIRST_PAUSE`, then after twice as
    long each time, up to `SHORT_PAUSE` in the first two seconds and to
    ``dead_retry`` later; no timer drives it.
    """

    def __init__(self, name: str, dead_retry: float, silences_until_dead: int) -> None:
        self.name = name
        self.dead = False
        self.why: MemcacheError | None = None
        #: True while the first call after a pause finds out.
        self.probing = False
        #: True if anything is not as it should be: one flag for the way of a reply.
        self.troubled = False
        self.failures = 0
        #: True from when a connection for nobody was not made until one is open.
        self.cold = False
        #: How often the server was taken for dead.
        self.deaths = 0
        self.dead_until = 0.0
        self._died_at = 0.0
        self._dead_retry = dead_retry
        self._pause = 0.0
        self._silences_until_dead = silences_until_dead
        self._silences = 0
        self._silent_since = 0.0
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._failures_before = 0

    def heard(self, now: float) -> bool:
        """Notes a byte from the server. Returns True if that ended its death."""
        revived, self.dead, self.probing = self.dead, False, False
        self._silences, self._pause, self.why = 0, 0.0, None
        if self._failing_since is None:
            self.troubled = False
        elif revived or now - self._failed_at >= QUIET:
            _log.info(
                "memcached %s answers again, after %d failed calls in %.1f s",
                self.name,
                self.failures - self._failures_before,
                now - self._failing_since,
            )
            self._failing_since = None
            self.troubled = False
        return revived

    def silence(self, asked_at: float, now: float, why: MemcacheError) -> bool:
        """Notes that a request made at ``asked_at`` was not answered by ``now``.

        Returns True if the server has died of it.
        """
        self.troubled = True
        if self.probing:
            return self._die(now, why)
        elif asked_at >= self._silent_since or not self._silences:
            self._silences += 1
            self._silent_since = now
            if self._silences >= self._silences_until_dead and not self.dead:
                return self._die(now, why)
        return False

    def refused(self, now: float, why: MemcacheError) -> bool:
        """Notes that the server does not take a connection: that counts at once.

        Returns True if the server has died of it.
        """
        self.troubled = True
        return (self.probing or not self.dead) and self._die(now, why)

    def not_warmed(self, why: MemcacheError) -> None:
        """Notes that a connection for nobody was not made: the next call finds out."""
        if not self.cold:
            _log.warning("memcached %s: no connection is kept warm: %s", self.name, why)
        self.cold = True

    def _die(self, now: float, why: MemcacheError) -> bool:
        died = not self.dead
        if died:
            self._failing(now)
            _log.warning("memcached %s is taken for dead: %s", self.name, why)
            self.deaths += 1
            self._died_at = now
        # (a twin: the caller's own error holds the frames that it went through)
        self.dead, self.probing, self.why = True, False, why.twin()
        longest = SHORT_PAUSE if now - self._died_at < SHORT_OUTAGE else self._dead_retry
        self._pause = min(self._pause * 2 or FIRST_PAUSE, longest, self._dead_retry)
        self.dead_until = now + self._pause * random.uniform(0.9, 1.0)
        return died

    def refusal(self, asked: str, now: float) -> MemcacheError:
        """Returns what a call is told while the server is dead and is not to be asked."""
        wait = max(0.0, self.dead_until - now)
        if isinstance(self.why, AuthenticationError):
            refused = self.why.of(asked, False)
            refused.message += f"; next try in {wait:.2f} s"
            return refused
        return ServerDead(
            f"{asked}: memcached {self.name} is taken for dead ({self.why}); "
            f"next try in {wait:.2f} s",
            server=self.name,
        )

    def may_probe(self, now: float) -> bool:
        """True if a call may find out now whether the dead server is back."""
        return not self.probing and now >= self.dead_until

    def retry_now(self) -> None:
        """Lets the next call find out, whatever the pause."""
        self.dead_until = 0.0

    def failed(self, now: float, error: MemcacheError, calls: int = 1) -> None:
        """Counts failed calls; the first after good ones is logged."""
        self.failures += calls
        if isinstance(error, (ServerDead, AuthenticationError)) and not self.dead:
            return  # (refused while it was dead, told after it came back: no new failure)
        self._failed_at = now
        self.troubled = True
        if self._failing_since is None:
            self._failing(now, calls)
            _log.warning(
                "memcached %s fails: %s (further failures are counted, not logged)",
                self.name,
                error,
            )

    def _failing(self, now: float, counted: int = 0) -> None:
        if self._failing_since is None:
            self._failing_since = self._failed_at = now
            self._failures_before = self.failures - counted

    def __repr__(self) -> str:
        if self.dead:
            return "probing" if self.probing else f"dead: {self.why}"
        return "failing" if self._failing_since is not None else "alive"
