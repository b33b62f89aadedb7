"""Several processes that do the same: begun by fork, told of signals, replaced when they die.

Knows processes and signals. It must not know what is done in them. A process
that dies is replaced, a second after it was begun at the earliest: clients
lose its connections and no more. Where all should end, they are told to.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

logger = logging.getLogger("tornado_memcache.workers")

#: What is passed on to the processes: to end, to read their configuration anew.
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WATCHED = (*PASSED_ON, signal.SIGCHLD)
#: A process that dies sooner, in seconds, is not replaced before.
SOONEST = 1.0


class Workers:
    """``count`` processes that run ``work(index)``, which returns an exit status.

    ``anew()`` is called here when SIGHUP came, before they are told of it:
    those that are begun later shall go by the same.

    They are forks of this one, which must not have begun a loop. `run`
    returns when they have ended after SIGTERM or SIGINT: 0, or 1 if any
    did not end well.
    """

    def __init__(
        self, count: int, work: Callable[[int], int], anew: Callable[[], None] = lambda: None
    ) -> None:
        self._count = count
        self._work = work
        self._anew = anew
        self._ending = False
        self._status = 0
        #: By pid: the index, and when it was begun.
        self._running: dict[int, tuple[int, float]] = {}
        #: Those to be begun again, and when.
        self._missing: dict[int, float] = {}

    def __repr__(self) -> str:
        return f"<Workers {sorted(self._running)}>"

    def run(self) -> int:
        """Begins the processes and looks after them until they are told to end."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        # One that sleeps in a read of this end sees that we are gone.
        self._gone, self._here = os.pipe()
        try:
            for index in range(self._count):
                self._begin(index, before)
            while self._running or (self._missing and not self._ending):
                self._next_signal()
                for index, moment in list(self._missing.items()):
                    if moment <= time.monotonic() and not self._ending:
                        del self._missing[index]
                        self._begin(index, before)
        finally:
            os.close(self._gone)
            os.close(self._here)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._status

    @property
    def gone(self) -> int:
        """A descriptor, in a process: readable once the one that began it is gone."""
        return self._gone

    def _begin(self, index: int, mask: set[signal.Signals | int]) -> None:
        pid = os.fork()
        if pid:
            self._running[pid] = index, time.monotonic()
            logger.info("process %d is begun", pid)
            return
        status = 1
        try:
            os.close(self._here)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = self._work(index)
        except Exception as error:
            logger.error("process %d ends: %s", os.getpid(), error)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _next_signal(self) -> None:
        wait = min(self._missing.values(), default=float("inf")) - time.monotonic()
        told = signal.sigtimedwait(_WATCHED, min(max(wait, 0.0), 60.0))
        if told is None:
            return
        if told.si_signo in PASSED_ON:
            if told.si_signo == signal.SIGHUP:
                self._anew()
            else:
                self._ending = True
            for pid in self._running:
                os.kill(pid, told.si_signo)
        self._reap()

    def _reap(self) -> None:
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            index, begun = self._running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if self._ending:
                self._status = self._status or int(code != 0)
                continue
            self._missing[index] = max(begun + SOONEST, time.monotonic())
            logger.warning("process %d has ended, with status %d: another is begun", pid, code)
