"""How a native call ends in python-memcached's terms.

Knows that client's value for each failure, and which failures it raises.
It must not know what was asked.
"""

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from . import boundaries
from .call import check_callbacks
from .errors import ClientError, MemcacheError, ReplyError, SerializationError
from .memcache_values import cause_of

Awaited = asyncio.Future[Any]

STORED = {
    b"STORED": True,
    b"NOT_STORED": False,
    b"EXISTS": False,
    b"NOT_FOUND": False,
    b"": True,
}
REACHED = {b"DELETED": 1, b"TOUCHED": 1, b"NOT_FOUND": 0, b"": 1}


def unanswered(reply: Any) -> bool:
    """True for the failure of a server, which an error line that it sent is not."""
    return isinstance(reply, MemcacheError) and not isinstance(reply, ReplyError)


class Outcomes:
    """The part of python-memcached's Client that turns native outcomes into its own."""

    debug: int

    def debuglog(self, str: str) -> None:
        """Writes a line to stderr, if ``debug`` is set."""
        if self.debug:
            sys.stderr.write(f"MemCached: {str}\n")

    def _translate(
        self,
        begin: Callable[..., Any],
        good: Callable[[Any], Any],
        failed: Any,
        how: dict[str, Any],
        *,
        refused: Any = None,
    ) -> Awaited:
        """Begins a native call and turns its outcome into this face's.

        ``good`` makes the outcome of a success, ``failed`` is the outcome
        of a failure, ``refused`` that of an error line (``failed`` if it
        is None); what `_refusal` picks is raised instead.
        """
        timeout, callback = how.pop("timeout", None), how.pop("callback", None)
        fail_callback = how.pop("fail_callback", None)
        if how:
            raise TypeError(f"unexpected keyword argument {next(iter(how))!r}")
        check_callbacks(callback, fail_callback)

        def value(error: MemcacheError) -> Any:
            self.debuglog(str(error))
            return failed if refused is None or not isinstance(error, ReplyError) else refused

        if callback is None and fail_callback is None:
            inner = begin(timeout=timeout)
            outer = inner.get_loop().create_future()
            inner.add_done_callback(partial(self._awaited, outer, good, value, failed))
            outer.add_done_callback(lambda ended: inner.cancel() if ended.cancelled() else None)
            return cast(Awaited, outer)

        succeeded, gave_up = self._called_back(good, value, callback, fail_callback)
        if fail_callback is None and boundaries.current() is not None:
            begin(timeout=timeout, callback=succeeded)
        else:
            begin(timeout=timeout, callback=succeeded, fail_callback=gave_up)
        return cast(Awaited, None)

    def _called_back(
        self,
        good: Callable[[Any], Any],
        value: Callable[[MemcacheError], Any],
        callback: Callable[[Any], Any] | None,
        fail_callback: Callable[[Any], Any] | None,
    ) -> tuple[Callable[[Any], Any], Callable[[Exception], Any]]:
        """Returns what is called with the native call's success, and with its failure."""

        def succeeded(result: Any) -> Any:
            try:
                outcome = good(result)
            except Exception as error:
                return gave_up(error)
            return callback(outcome) if callback is not None else None

        def gave_up(error: Exception) -> Any:
            refusal = self._refusal(error)
            if fail_callback is not None:
                return fail_callback(refusal or error)
            if boundaries.current() is not None:
                raise error  # (as it is: a boundary catches no ValueError)
            if refusal is not None:
                raise refusal
            if not isinstance(error, MemcacheError):
                raise error
            return callback(value(error)) if callback is not None else None

        return succeeded, gave_up

    def _awaited(
        self,
        outer: Awaited,
        good: Callable[[Any], Any],
        value: Callable[[MemcacheError], Any],
        failed: Any,
        inner: Awaited,
    ) -> None:
        if outer.done():
            return
        try:
            outer.set_result(good(inner.result()))
        except asyncio.CancelledError:  # by a boundary: its failure is this call's too
            outer.set_result(failed)
        except MemcacheError as error:
            refusal = self._refusal(error)
            if refusal is not None:
                outer.set_exception(refusal)
            else:
                outer.set_result(value(error))
        except Exception as error:
            outer.set_exception(error)

    @staticmethod
    def _refusal(error: Exception) -> Exception | None:
        """Returns the ValueError that python-memcached raises, if it raises one."""
        if isinstance(error, SerializationError) and (cause := cause_of(error)) is not error:
            return cause
        if isinstance(error, ClientError) and error.message.startswith(("incr", "decr")):
            return ValueError(error.message)
        return None
