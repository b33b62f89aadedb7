"""What commands need of a client: the funnel through which every call goes.

Knows the shape of it. It must not know a command, nor how a client does it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from .arguments import key_bytes
from .protocol import Reply, Request

if TYPE_CHECKING:
    from .chain import Steps
    from .pool import Pool

Key = str | bytes | tuple[int | str | bytes, str | bytes]


class How(TypedDict, total=False):
    """The keywords that every command takes beside its own arguments.

    ``timeout`` is the length in seconds after which the call ends, in
    place of ``request_timeout``. With ``callback`` or ``fail_callback``
    the call is in callback style and returns None: ``callback(result)``
    or ``fail_callback(error)`` is called once, each a plain or a
    coroutine function.
    """

    timeout: float | None
    callback: Callable[[Any], Any] | None
    fail_callback: Callable[[Any], Any] | None


class Funnel(ABC):
    """The one way of every command; a client gives it."""

    @abstractmethod
    def _locate(
        self, key: Any, checked: Callable[[Any, bytes], bytes] = key_bytes
    ) -> "tuple[bytes, Pool]":
        """Returns the key's bytes, which ``checked(key, prefix)`` gives, and its server's pool."""

    @abstractmethod
    def _locate_many(self, keys: "Sequence[Any]") -> "dict[Pool, dict[bytes, Any]]":
        """Returns the keys by pool: each as it is on the wire, and as the caller gave it.

        Where several of the caller's are one on the wire, it has a list of them.
        """

    @abstractmethod
    def _submit(
        self,
        pool: "Pool",
        request: Request,
        outcome: Callable[[Reply], Any],
        how: Any,
    ) -> "asyncio.Future[Any]":
        """Sends ``request``; ``outcome(reply)`` makes what the caller gets."""

    @abstractmethod
    def _submit_many(
        self,
        parts: "Iterable[tuple[Pool, Request, Callable[[Any, bool], None]]]",
        result: Any,
        how: Any,
        *,
        whole: bool,
        strict: bool = False,
    ) -> "asyncio.Future[Any]":
        """Sends the parts of one call; each ``take(reply or error, good)`` fills ``result``."""

    @abstractmethod
    def _submit_steps(
        self, request: Request, steps: "Steps", outcome: Callable[[Reply], Any], how: Any
    ) -> "asyncio.Future[Any]":
        """Begins a call of several requests, one after the other; ``request`` names it."""

    @abstractmethod
    def _ask(self, pool: "Pool", request: Request) -> "Steps":
        """One step of such a call: returns the reply to ``request``, or raises what it came to."""

    @abstractmethod
    def _settle(self, result: Any, how: Any) -> "asyncio.Future[Any]":
        """Gives an outcome that needs no server, on a later tick."""

    #: What is brought over from another cluster, None without one.
    migration: Any

    #: Turns stored bytes and flags into a value; with `_raw_flags` they are the value.
    _decode: Callable[[bytes, bytes, int], Any]
    _raw_flags: int | None

    @abstractmethod
    def _encode(self, wire: bytes, value: Any, compress: bool = True) -> tuple[bytes, int]:
        """Returns the bytes and flags that stand for ``value``."""

    @abstractmethod
    def _all_pools(self) -> "Iterable[Pool]":
        """Returns the pools of all servers."""
