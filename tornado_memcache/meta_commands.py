"""The meta commands of the client, over the funnel of all commands.

Knows what each option is called, which letter of protocol.txt stands for it,
and what excludes what. It must not know how a server is found, how a call
waits, or how anything reaches the wire.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from .arguments import (
    LONGEST_LENGTH,
    binary_key_bytes,
    check_flag,
    check_integer,
    key_bytes,
    wire_exptime,
)
from .commands import Commands
from .errors import InvalidRequest
from .funnel import How, Key
from .meta import check_opaque, read_returned
from .meta_outcomes import MetaItem, cas_of, changed, facts_of, item_of
from .outcomes import CasUnique, MultiResult, outdated
from .protocol import Reply, Request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .pool import Pool

_BIGGEST = (1 << 64) - 1
_STORING = {"set": b"", "add": b"ME", "append": b"MA", "prepend": b"MP", "replace": b"MR"}
_COUNTING = {"incr": b"", "decr": b"MD"}


class MetaCommands(Commands):
    """The commands of the meta dialect (protocol.txt, "Meta Commands"; memcached 1.6.10).

    All take ``timeout``, ``callback`` and ``fail_callback`` (`How`), keys
    with routes, and beside them:

    - ``binary`` (``b``): the key may be any 1 to 186 bytes (the prefix
      included), and crosses the wire in base64. It is the same item as
      that of the same key without ``binary``.
    - ``opaque`` (``O``): up to 32 bytes or a str, no white space, which the
      server repeats; a reply with another one closes the connection, with
      `.ProtocolError`. (memcached 1.6.18 takes 31 bytes.)

    The first of them that goes to a server has its version asked before.
    A server older than 1.6.10, or one that tells no version, is sent none
    of them: they fail with `.MetaUnsupported`, and all other commands go on.
    """

    def meta_get(
        self,
        key: Key,
        *,
        value: bool = True,
        cas_unique: bool = False,
        remaining: bool = False,
        last_access: bool = False,
        hit_before: bool = False,
        size: bool = False,
        touch: Any = None,
        vivify: Any = None,
        recache: Any = None,
        no_bump: bool = False,
        binary: bool = False,
        opaque: bytes | str | None = None,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[MetaItem | None]":
        """Fetches an item with what else is asked for (protocol.txt, "Meta Get").

        Told of it, if True: its ``value`` and flags (``v`` and ``f``), its
        ``cas_unique`` (``c``), the ``remaining`` seconds of its exptime
        (``t``), its ``last_access`` (``l``), whether it was ``hit_before``
        (``h``), and its ``size`` (``s``, always told with the value).

        ``touch`` (``T``) sets its exptime (as an exptime of `set`).
        ``vivify`` (``N``, an exptime that ends) makes a stub on a miss:
        this caller has ``won`` and is to store a value, everybody else
        sees the stub meanwhile, with ``recache``. ``recache`` (``R``,
        seconds) lets one caller win when less than that remains.
        ``no_bump`` (``u``) leaves its place in the LRU as it is.

        Outcome: a `MetaItem`, None on a miss. With ``touch``, ``vivify`` or
        ``recache`` it is a write: if it fails with ``maybe_applied``, that
        may have taken effect.
        """
        wire, pool = self._locate(key, _checked(binary))
        # memcached does what flags say in their order: what changes an item is told after that.
        flags = _changing(touch, vivify, recache)
        flags += _asked(
            v=check_flag("value", value),
            f=value,
            c=check_flag("cas_unique", cas_unique),
            t=check_flag("remaining", remaining),
            l=check_flag("last_access", last_access),
            h=check_flag("hit_before", hit_before),
            s=check_flag("size", size) and not value,
            u=check_flag("no_bump", no_bump),
            k=True,
            b=binary,
        )
        flags += _opaque(opaque)
        outcome = partial(self._meta_item, wire, pool, pool.generation)
        return self._submit(pool, Request(b"mg", (wire,), argument=b" ".join(flags)), outcome, how)

    def _meta_item(self, wire: bytes, pool: "Pool", generation: int, reply: Reply) -> Any:
        if reply.status == b"EN":
            return None
        return item_of(reply, partial(self._meta_value, wire), pool, generation)

    def _meta_value(self, wire: bytes, reply: Reply, flags: int) -> Any:
        return self._decode(wire, reply.value, flags)

    def meta_set(
        self,
        key: Key,
        value: Any,
        exptime: Any = 0,
        *,
        mode: Literal["set", "add", "replace", "append", "prepend"] = "set",
        cas_unique: int | None = None,
        invalidate: bool = False,
        return_cas_unique: bool = False,
        binary: bool = False,
        opaque: bytes | str | None = None,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[CasUnique | bool | None]":
        """Stores a value (protocol.txt, "Meta Set"), with ``exptime`` as for `set` (``T``).

        ``mode`` (``M``) is that of the command of the same name. With
        ``cas_unique`` (``C``) only the item is replaced that
        `meta_get` or `gets` returned; with ``invalidate`` (``I``) too, one
        that has changed since is replaced as well, if ``cas_unique`` is
        lower than its own, and what is stored is stale at once.

        Outcome: True, or with ``return_cas_unique`` (``c``) the new
        `CasUnique`; False if the mode did not allow it, the item changed
        since, or the connection to its server was lost since (fetch
        again); None if ``cas_unique`` is given and the item is gone. When
        it fails with ``maybe_applied``, it may still take effect.
        """
        wire, pool = self._locate(key, _checked(binary))
        if mode not in _STORING:
            raise InvalidRequest(f"mode must be one of {', '.join(_STORING)}")
        joins = mode in ("append", "prepend")
        if joins and type(value) is int:
            raise TypeError(f"value to {mode} must be bytes or str, not int")
        if check_flag("invalidate", invalidate) and cas_unique is None:
            raise InvalidRequest("invalidate needs cas_unique, the one that may be outdated")
        flags = _asked(c=check_flag("return_cas_unique", return_cas_unique), I=invalidate, b=binary)
        flags += _opaque(opaque) + _compared(cas_unique)
        moment = wire_exptime(exptime, time.time)
        data, raw = self._encode(wire, value, not joins)
        flags += [b"T%d" % moment] * bool(moment) + [b"F%d" % raw] * bool(raw)
        flags += [_STORING[mode]] * bool(_STORING[mode])
        return self._change(b"ms", wire, pool, flags, data, cas_unique, how)

    def meta_delete(
        self,
        key: Key,
        *,
        cas_unique: int | None = None,
        invalidate: bool = False,
        exptime: Any = None,
        binary: bool = False,
        opaque: bytes | str | None = None,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[bool | None]":
        """Deletes an item, or marks it as stale (protocol.txt, "Meta Delete").

        With ``cas_unique`` (``C``) only if the item is the one that
        `meta_get` or `gets` returned. With ``invalidate`` (``I``) it stays,
        as ``stale``: the next `meta_get` has ``won``, the others get it
        meanwhile; ``exptime`` (``T``) says for how long at most.

        Outcome: True; False if the item changed since, or the connection to
        its server was lost since; None if it was not there.
        """
        wire, pool = self._locate(key, _checked(binary))
        flags = _asked(I=check_flag("invalidate", invalidate), b=binary)
        flags += _opaque(opaque) + _compared(cas_unique)
        if exptime is not None:
            if not invalidate:
                raise InvalidRequest("exptime is for what stays: it needs invalidate=True")
            flags.append(b"T%d" % wire_exptime(exptime, time.time))
        return self._change(b"md", wire, pool, flags, b"", cas_unique, how)

    def _change(
        self,
        verb: bytes,
        wire: bytes,
        pool: "Pool",
        flags: list[bytes],
        data: bytes,
        cas_unique: int | None,
        how: Any,
    ) -> "asyncio.Future[Any]":
        outcome: Callable[[Reply], Any] = changed
        if b"c" in flags:
            outcome = partial(_changed_to, pool, pool.generation)
        if cas_unique is not None and outdated(cas_unique, pool):
            return self._settle(False, how)
        request = Request(
            verb, (wire,), data, cas_unique=cas_unique or 0, argument=b" ".join(flags)
        )
        return self._submit(pool, request, outcome, how)

    def debug(
        self, key: Key, *, binary: bool = False, **how: "Unpack[How]"
    ) -> "asyncio.Future[dict[str, str] | None]":
        """Asks what the server knows of an item beside its value (protocol.txt, "Meta Debug").

        Outcome: a dict as memcached tells it, of ``exp`` (its exptime),
        ``la`` (seconds since the last access), ``cas``, ``fetch``, ``cls``,
        ``size`` and others; None on a miss. Looking does not bump it.
        """
        wire, pool = self._locate(key, _checked(binary))
        flags = b"b" if binary else b""
        return self._submit(pool, Request(b"me", (wire,), argument=flags), facts_of, how)

    def meta_noop(self, **how: "Unpack[How]") -> "asyncio.Future[MultiResult[str, bool]]":
        """Asks every server for a sign of life (protocol.txt, "Meta No-Op").

        Outcome: a dict of server to True, with ``errors`` (a server that is
        too old among them); it fails if every server failed.
        """
        return self._ask_all(Request(b"mn"), _is_there, how)


def _checked(binary: bool) -> Callable[[Any, bytes], bytes]:
    """Returns what checks a key and makes it what memcached keeps."""
    return binary_key_bytes if check_flag("binary", binary) else key_bytes


def _asked(**letters: bool) -> list[bytes]:
    return [letter.encode() for letter, wanted in letters.items() if wanted]


def _opaque(opaque: object) -> list[bytes]:
    return [] if opaque is None else [b"O" + check_opaque("opaque", opaque)]


def _compared(cas_unique: Any) -> list[bytes]:
    if cas_unique is None:
        return []
    return [b"C%d" % check_integer("cas_unique", cas_unique, 0, _BIGGEST)]


def _changing(touch: Any, vivify: Any, recache: Any) -> list[bytes]:
    """Returns the flags of a mg that changes the item."""
    flags = []
    if touch is not None:
        flags.append(b"T%d" % wire_exptime(touch, time.time, "touch"))
    if vivify is not None:
        moment = wire_exptime(vivify, time.time, "vivify")
        if moment <= 0:
            raise InvalidRequest("vivify must end: nobody else could win where a winner dies")
        flags.append(b"N%d" % moment)
    if recache is not None:
        flags.append(b"R%d" % check_integer("recache", recache, 0, LONGEST_LENGTH))
    return flags


def _changed_to(pool: "Pool", generation: int, reply: Reply) -> Any:
    token = cas_of(read_returned(reply.text), pool, generation)
    return token if reply.status == b"HD" else changed(reply)


def _is_there(reply: Reply) -> bool:
    return True
