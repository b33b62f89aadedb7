"""``@cached``: a function whose values are kept in memcached.

Knows how a call's arguments become a key. It must not know how a value is
computed once, nor where it is kept.
"""

import asyncio
import functools
import inspect
import re
import string
import types
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from .arguments import key_bytes
from .boundaries import name_of
from .client import Client
from .errors import InvalidKey, InvalidRequest, shown
from .funnel import Key
from .namespaces import Namespace
from .stampede import LOCK_TIMEOUT, checked_terms

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_T = TypeVar("_T")


class Cached(Protocol[_P, _T]):
    """A function that ``@cached`` decorates; one of a class is a method of its objects."""

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> "asyncio.Future[_T]":
        """Returns a Future of the value, from the cache or computed."""

    def invalidate(self, *args: _P.args, **kwargs: _P.kwargs) -> "asyncio.Future[bool]":
        """Has the value of a call with these arguments computed anew, by `.Client.invalidate`.

        With ``stale`` the old one may be served meanwhile, for so long.
        """

    def key_of(self, *args: _P.args, **kwargs: _P.kwargs) -> Key:
        """Returns the key of a call with these arguments."""

    @overload
    def __get__(self, of: None, owner: Any = None) -> "Cached[_P, _T]": ...

    @overload
    def __get__(
        self: "Cached[Concatenate[Any, _Q], _T]", of: object, owner: Any = None
    ) -> "Cached[_Q, _T]": ...


class Decorator(Protocol):
    """What `cached` returns: it takes the function."""

    @overload
    def __call__(self, function: Callable[_P, Awaitable[_T]], /) -> Cached[_P, _T]: ...

    @overload
    def __call__(self, function: Callable[_P, _T], /) -> Cached[_P, _T]: ...


def cached(
    client: Client | Namespace,
    exptime: "int | timedelta",
    key: str | Callable[..., Key],
    *,
    stale: "int | timedelta | None" = None,
    early: "int | timedelta | None" = None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> Decorator:
    """Keeps what a function returns, by `.Client.get_or_set`::

        @cached(mc, 60, key="page:{user_id}:{language}", stale=30)
        async def page(user_id, language="en"):
            ...

        await page(7)
        await page.invalidate(7)

    For plain and for coroutine functions; a call gives a Future of the
    value in either case. ``page.invalidate`` and ``page.key_of`` take the
    arguments of a call; of a method, ``site.page.invalidate(7)``. ``client``
    may be a `.Namespace`, whose ``invalidate()`` ends all of it.

    ``key`` is a format string over the function's parameters, defaults
    included, or a callable of the same arguments that returns a key or
    ``(route, key)``. It has to tell apart all calls whose values differ:
    of ``"{a}:{b}"`` the pairs ``("x:y", "z")`` and ``("x", "y:z")`` have
    the same. What a key cannot hold (spaces, long text) a callable may
    hash. ``exptime``, ``stale``, ``early`` and ``lock_timeout``
    are those of `.Client.get_or_set`, whose failures a call has.

    Raises `TypeError` and `.InvalidRequest` where the function is
    decorated, if it is none, or if ``key`` names what is no parameter of
    it; and at a call `.InvalidKey` that names the function, if no key can
    be made of its arguments. A call with other arguments than the function
    takes is a `TypeError`.
    """
    if not isinstance(client, (Client, Namespace)):
        raise TypeError(f"client must be a Client or a Namespace, not {type(client).__name__}")
    checked_terms(exptime, stale, early, lock_timeout)
    options: Any = {"stale": stale, "early": early, "lock_timeout": lock_timeout}

    def decorate(function: Any) -> _Kept:
        key_of = _keys_of(function, key)

        def wanted(*args: Any, **kwargs: Any) -> "asyncio.Future[Any]":
            made = key_of(*args, **kwargs)
            # (no partial: a parameter that is called callback is the function's own)
            return client.get_or_set(made, lambda: function(*args, **kwargs), exptime, **options)

        def invalidate(*args: Any, **kwargs: Any) -> "asyncio.Future[bool]":
            return client.invalidate(key_of(*args, **kwargs), stale or None)

        return _Kept(function, wanted, invalidate, key_of)

    return cast(Decorator, decorate)


class _Kept:
    """A function, or a method of one object, whose values are kept."""

    def __init__(self, function: Any, wanted: Any, invalidate: Any, key_of: Any) -> None:
        functools.update_wrapper(self, function)
        self._wanted, self.invalidate, self.key_of = wanted, invalidate, key_of

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._wanted(*args, **kwargs)

    def __get__(self, of: Any, owner: Any = None) -> "_Kept":
        if of is None:
            return self
        parts = self._wanted, self.invalidate, self.key_of
        method = types.MethodType(self.__wrapped__, of)  # type: ignore[attr-defined]
        return _Kept(method, *(functools.partial(part, of) for part in parts))

    def __repr__(self) -> str:
        return f"<cached {self.__wrapped__!r}>"  # type: ignore[attr-defined]


def _keys_of(function: Any, key: Any) -> Callable[..., Key]:
    """Returns what makes the key of a call of ``function``."""
    name = name_of(function)
    if not callable(function) or isinstance(function, type):
        raise TypeError("cached decorates a plain function or a coroutine function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("cached cannot decorate a generator")
    make = _formatted(inspect.signature(function), key, name) if isinstance(key, str) else key
    if not callable(make):
        raise TypeError(f"key must be a format string or callable, not {type(key).__name__}")

    @functools.wraps(function)
    def key_of(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        bare = made[1] if isinstance(made, tuple) and len(made) == 2 else made
        try:
            key_bytes(bare)
        except (InvalidKey, TypeError) as error:
            raise type(error)(f"of a call of {name}: {error}") from None
        return made

    return key_of


def _formatted(signature: inspect.Signature, template: str, name: str) -> Callable[..., str]:
    """Returns what formats ``template`` with the arguments of a call, by their names."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise InvalidRequest(f"key {shown(template)} is no format string: {error}") from None
    for field in fields:
        if field is not None and re.split(r"[.[]", field)[0] not in signature.parameters:
            raise InvalidRequest(
                f"key {shown(template)} names {shown(field)}, which is no parameter of {name}"
            )

    def make(*args: Any, **kwargs: Any) -> str:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"of a call of {name}: {error}") from None
        bound.apply_defaults()
        try:
            return template.format(**bound.arguments)
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            told = f"key {shown(template)} cannot be made of a call of {name}"
            raise InvalidKey(f"{told}: {type(error).__name__}") from error

    return make
