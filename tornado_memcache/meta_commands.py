"""The meta commands of the client, over the funnel of all commands.

Knows what each option is called, which letter of protocol.txt stands for it,
and what excludes what. It must not know how a server is found, how a call
waits, or how anything reaches the wire.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from .arguments import (
    LONGEST_LENGTH,
    binary_key_bytes,
    check_flag,
    check_integer,
    key_bytes,
    listed,
    wire_exptime,
)
from .commands import Commands
from .errors import InvalidRequest, MemcacheError
from .funnel import How, Key
from .meta import check_opaque, flags_of, read_returned
from .meta_batches import BATCH, QUIET, BatchReply
from .meta_outcomes import MetaItem, cas_of, changed, facts_of, item_of
from .outcomes import CasUnique, FailedKeys, MultiResult, outdated
from .protocol import Reply, Request, read_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .chain import Steps
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
        told = cas_unique, remaining, last_access, hit_before, size, no_bump
        flags = _getting(value, told, _changing(touch, vivify, recache))
        flags += [b"k", *_asked(b=binary), *_opaque(opaque)]
        outcome = partial(self._meta_item, wire, pool, pool.generation)
        return self._submit(pool, Request(b"mg", (wire,), argument=b" ".join(flags)), outcome, how)

    def meta_get_multi(
        self,
        keys: Iterable[Any],
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
        strict: bool = False,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[MultiResult[Any, MetaItem]]":
        """Fetches many items, with what else is asked for; the options are those of `meta_get`.

        Quiet batches (``q``) of up to 100 keys to a server, closed by
        ``mn``: misses cost no reply, and opaques say which reply is whose.
        An error line within a batch names no key: the hits that came are
        there, and what is missing may be a miss or have failed.

        Outcome: a dict of the hits under the caller's own key objects, with
        ``errors`` as of `get_multi`; the call fails if every server
        failed, or with ``strict`` if there is any error.
        """
        told = cas_unique, remaining, last_access, hit_before, size, no_bump
        flags = _getting(value, told, _changing(touch, vivify, recache))
        result: MultiResult[Any, MetaItem] = MultiResult()
        asked = self._locate_many(listed("keys", keys))
        parts = [
            (
                pool,
                self._batch(b"mg", chunk, flags),
                partial(self._take_items_of, result, pool, wires, pool.generation, chunk),
            )
            for pool, wires in asked.items()
            for chunk in self._chunks(wires)
        ]
        return self._submit_many(parts, result, how, whole=True, strict=strict)

    def _chunks(self, wires: Collection[bytes]) -> list[tuple[bytes, ...]]:
        """Returns the keys that leave together; what is to be brought over is asked one by one."""
        if self.migration is not None:
            return [(wire,) for wire in wires]
        keys = list(wires)
        return [tuple(keys[at : at + BATCH]) for at in range(0, len(keys), BATCH)]

    def _batch(self, verb: bytes, chunk: tuple[bytes, ...], flags: list[bytes]) -> Request:
        quiet = [QUIET] if self.migration is None else []
        return Request(verb, chunk, argument=b" ".join([*quiet, *flags]))

    def _take_items_of(
        self,
        result: "MultiResult[Any, MetaItem]",
        pool: "Pool",
        wires: dict[bytes, Any],
        generation: int,
        chunk: tuple[bytes, ...],
        reply: Any,
        good: bool,
    ) -> None:
        replies, failure = _parts_of(chunk, reply) if good else ({}, None)
        for wire, one in replies.items():
            try:
                item = self._meta_item(wire, pool, generation, one)
            except MemcacheError as error:
                failure = failure or error
                continue
            if item is not None:
                result.update(dict.fromkeys(_given(wires, wire), item))
        if failure is not None:
            raise failure

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
        new_cas_unique: int | None = None,
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
        ``new_cas_unique`` (``E``) is what the item gets as its own; a server
        that does not know that yet gives `.MetaUnsupported`.

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
        flags += _opaque(opaque) + _compared(cas_unique) + _explicit(new_cas_unique)
        moment = wire_exptime(exptime, time.time)
        data, raw = self._encode(wire, value, not joins)
        flags += [b"T%d" % moment] * bool(moment) + [b"F%d" % raw] * bool(raw)
        flags += [_STORING[mode]] * bool(_STORING[mode])
        outcome: Callable[[Reply], Any] = changed
        if return_cas_unique:
            outcome = partial(_changed_to, pool, pool.generation)
        return self._change(b"ms", wire, pool, flags, data, cas_unique, outcome, how)

    def meta_delete(
        self,
        key: Key,
        *,
        cas_unique: int | None = None,
        new_cas_unique: int | None = None,
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
        meanwhile; ``exptime`` (``T``) says for how long at most, and
        ``new_cas_unique`` (``E``) what it gets as its cas unique.

        Outcome: True; False if the item changed since, or the connection to
        its server was lost since; None if it was not there.
        """
        wire, pool = self._locate(key, _checked(binary))
        flags = _asked(I=check_flag("invalidate", invalidate), b=binary)
        flags += _opaque(opaque) + _compared(cas_unique) + _explicit(new_cas_unique)
        if new_cas_unique is not None and not invalidate:
            raise InvalidRequest("new_cas_unique is for what stays: it needs invalidate=True")
        flags += _expiring(exptime, invalidate)
        return self._change(b"md", wire, pool, flags, b"", cas_unique, changed, how)

    def meta_arithmetic(
        self,
        key: Key,
        delta: int = 1,
        *,
        mode: Literal["incr", "decr"] = "incr",
        initial: int | None = None,
        vivify: Any = None,
        exptime: Any = None,
        cas_unique: int | None = None,
        new_cas_unique: int | None = None,
        return_cas_unique: bool = False,
        remaining: bool = False,
        binary: bool = False,
        opaque: bytes | str | None = None,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[MetaItem | Literal[False] | None]":
        """Adds to or subtracts from a stored number (protocol.txt, "Meta Arithmetic").

        ``delta`` (``D``) and ``mode`` (``M``) as for `incr` and `decr`.
        ``vivify`` (``N``, an exptime) stores ``initial`` (``J``, 0) on a
        miss; ``exptime`` (``T``) is set on a hit. With ``cas_unique``
        (``C``) only the item is changed that `meta_get` returned.

        Outcome: a `MetaItem` whose value is the new number, with its
        ``cas_unique`` (``c``) and the ``remaining`` seconds (``t``) if these
        are asked for; None on a miss; False if the item changed since, or
        the connection to its server was lost since. `.ClientError` if the
        stored value is no number. A write, as `meta_set`.
        """
        wire, pool = self._locate(key, _checked(binary))
        if mode not in _COUNTING:
            raise InvalidRequest("mode must be incr or decr")
        flags = [b"D%d" % check_integer("delta", delta, 0, _BIGGEST)]
        flags += [_COUNTING[mode]] * bool(_COUNTING[mode])
        if vivify is not None:
            flags.append(b"N%d" % _lasting("vivify", vivify, 0))
        if initial is not None:
            if vivify is None:
                raise InvalidRequest("initial is what a miss stores: it needs vivify")
            flags.append(b"J%d" % check_integer("initial", initial, 0, _BIGGEST))
        if exptime is not None:
            flags.append(b"T%d" % wire_exptime(exptime, time.time))
        flags += _asked(
            v=True,
            c=check_flag("return_cas_unique", return_cas_unique),
            t=check_flag("remaining", remaining),
            b=binary,
        )
        flags += _opaque(opaque) + _compared(cas_unique) + _explicit(new_cas_unique)
        outcome = partial(_number_of, pool, pool.generation)
        return self._change(b"ma", wire, pool, flags, b"", cas_unique, outcome, how)

    def set_if_newer(
        self,
        key: Key,
        value: Any,
        version: int,
        exptime: Any = 0,
        *,
        binary: bool = False,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[bool]":
        """Stores a value with its version, unless one as new or newer is there.

        ``version`` (1 to 2^64-1) is a number that grows with each change,
        as that of a row of a database. memcached keeps it as the item's
        cas unique (``E``), so write such keys by this command alone: the
        others make cas uniques of their own. In whatever order writers
        come, the highest version stays. An item that was deleted, or
        evicted, has no version any more: the next one is stored.

        Two requests at least, within the one deadline of the call: the
        version that is there is asked for, and replaced if nobody else was
        quicker. So it does not keep its place among other calls for the
        key: await it before the next. Outcome: True if it was stored,
        False if what is there is as new. `.MetaUnsupported` if the server
        does not know ``E`` (memcached 1.6.18 does not, 1.6.38 does).
        """
        wire, pool = self._locate(key, _checked(binary))
        check_integer("version", version, 1, _BIGGEST)
        if self.migration is not None:
            raise InvalidRequest("set_if_newer: what comes from migrate_from has no version")
        moment = wire_exptime(exptime, time.time)
        data, raw = self._encode(wire, value)
        flags = [b"E%d" % version, *_asked(b=binary)]
        flags += [b"T%d" % moment] * bool(moment) + [b"F%d" % raw] * bool(raw)
        request = Request(b"ms", (wire,), data, argument=b" ".join(flags))
        return self._submit_steps(request, self._newer(pool, request, version), changed, how)

    def _newer(self, pool: "Pool", request: Request, version: int) -> "Steps":
        """Asks for the version that is there, and replaces that very one, until one of us won."""
        flags = request.argument
        key_flags = b" b" if b"b" in flags_of(flags) else b""
        while True:
            found = yield from self._ask(
                pool, Request(b"mg", request.keys, argument=b"c" + key_flags)
            )
            if found.status == b"EN":
                compared = b" ME"
            else:
                there = int(read_returned(found.text)[b"c"])
                if there >= version:
                    return Reply(b"NS")
                compared = b" C%d" % there
            reply = yield from self._ask(pool, request._replace(argument=flags + compared))
            if reply.status == b"HD":
                return reply

    def meta_delete_multi(
        self,
        keys: Iterable[Any],
        *,
        invalidate: bool = False,
        exptime: Any = None,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[FailedKeys[Any]]":
        """Deletes many items, or marks them as stale; the options are those of `meta_delete`.

        Quiet batches as those of `meta_get_multi`: what is done costs no
        reply. An error line within a batch names no key: all that it may
        stand for are failed keys.

        Outcome: the keys (the caller's own objects) that could not be
        reached, with ``errors`` as of `delete_multi`; one that was not
        there has been reached.
        """
        flags = _asked(I=check_flag("invalidate", invalidate)) + _expiring(exptime, invalidate)
        result: FailedKeys[Any] = FailedKeys()

        def take(wires: dict[bytes, Any], chunk: tuple[bytes, ...], reply: Any, good: bool) -> None:
            unknown = reply.unknown if isinstance(reply, BatchReply) else () if good else chunk
            for wire in unknown:
                result.extend(_given(wires, wire))
            if good and (failure := _parts_of(chunk, reply)[1]) is not None:
                raise failure

        parts = [
            (pool, self._batch(b"md", chunk, flags), partial(take, wires, chunk))
            for pool, wires in self._locate_many(listed("keys", keys)).items()
            for chunk in self._chunks(wires)
        ]
        return self._submit_many(parts, result, how, whole=False)

    def _change(
        self,
        verb: bytes,
        wire: bytes,
        pool: "Pool",
        flags: list[bytes],
        data: bytes,
        cas_unique: int | None,
        outcome: Callable[[Reply], Any],
        how: Any,
    ) -> "asyncio.Future[Any]":
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

        Outcome: a dict as memcached tells it, of ``exp`` (-1: never
        expires; 1.6.18 counts the seconds that remain below zero: ``"-60"``),
        ``la`` (seconds since the last access), ``cas``, ``fetch``, ``cls``,
        ``size`` and others, all of them str; None on a miss. Looking does
        not bump it.
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


def _getting(value: bool, told: tuple[bool, ...], changing: list[bytes]) -> list[bytes]:
    """Returns the flags of a mg.

    memcached does what they say in their order: what changes an item stands
    first, so that the rest tells how it is then.
    """
    cas_unique, remaining, last_access, hit_before, size, no_bump = told
    return changing + _asked(
        v=check_flag("value", value),
        f=value,
        c=check_flag("cas_unique", cas_unique),
        t=check_flag("remaining", remaining),
        l=check_flag("last_access", last_access),
        h=check_flag("hit_before", hit_before),
        s=check_flag("size", size) and not value,
        u=check_flag("no_bump", no_bump),
    )


def _expiring(exptime: Any, invalidate: bool) -> list[bytes]:
    """Returns the flags of a md that sets an exptime."""
    if exptime is None:
        return []
    if not invalidate:
        raise InvalidRequest("exptime is for what stays: it needs invalidate=True")
    return [b"T%d" % wire_exptime(exptime, time.time)]


def _given(wires: dict[bytes, Any], wire: bytes) -> list[Any]:
    """Returns the caller's own keys that are ``wire`` on the wire."""
    same = wires[wire]
    return same if type(same) is list else [same]


def _parts_of(
    chunk: tuple[bytes, ...], reply: Reply
) -> tuple[dict[bytes, Reply], MemcacheError | None]:
    """Returns the replies of a batch by key, or of what was asked alone, and its first error."""
    if isinstance(reply, BatchReply):
        return reply.replies, reply.error
    return {chunk[0]: reply}, None


def _opaque(opaque: object) -> list[bytes]:
    return [] if opaque is None else [b"O" + check_opaque("opaque", opaque)]


def _compared(cas_unique: Any) -> list[bytes]:
    if cas_unique is None:
        return []
    if not check_integer("cas_unique", cas_unique, 0, _BIGGEST):
        raise InvalidRequest("cas_unique is 0, which no item has: pass the one that was fetched")
    return [b"C%d" % cas_unique]


def _changing(touch: Any, vivify: Any, recache: Any) -> list[bytes]:
    """Returns the flags of a mg that changes the item.

    In this order recache goes by the exptime from before the touch, and what
    a vivify makes has the exptime that is its own.
    """
    flags = []
    if recache is not None:
        flags.append(b"R%d" % check_integer("recache", recache, 0, LONGEST_LENGTH))
    if touch is not None:
        flags.append(b"T%d" % wire_exptime(touch, time.time, "touch"))
    if vivify is not None:
        # (Else nobody could win where a winner dies.)
        flags.append(b"N%d" % _lasting("vivify", vivify, 1))
    return flags


def _explicit(new_cas_unique: Any) -> list[bytes]:
    if new_cas_unique is None:
        return []
    return [b"E%d" % check_integer("new_cas_unique", new_cas_unique, 1, _BIGGEST)]


def _lasting(name: str, exptime: Any, lowest: int) -> int:
    """Returns an exptime of what is made on a miss; memcached takes -1 for one in 136 years."""
    moment = wire_exptime(exptime, time.time, name)
    if moment < lowest:
        raise InvalidRequest(f"{name} must be a length of {lowest} seconds or more, or a moment")
    return moment


def _number_of(pool: "Pool", generation: int, reply: Reply) -> Any:
    if reply.status != b"VA":
        return changed(reply)
    return item_of(reply, _read_count, pool, generation)


def _read_count(reply: Reply, flags: int) -> int:
    return read_number(reply.value.rstrip(b" "), 64, "a number")


def _changed_to(pool: "Pool", generation: int, reply: Reply) -> Any:
    token = cas_of(read_returned(reply.text), pool, generation)
    return token if reply.status == b"HD" else changed(reply)


def _is_there(reply: Reply) -> bool:
    return True
