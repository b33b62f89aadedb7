"""Values, secrets and long keys are never told: not in a message, a log, or a repr.

Each is planted as a marker, every way to fail is walked, and all that was
said is searched: messages, causes, log records with their tracebacks, and
the repr of every object of the package. What holds for the secrets that
there are has to hold for every setting that sounds like one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import inspect
import logging
import re
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    FailedKeys,
    Item,
    MemcacheError,
    MultiResult,
    Reply,
    Request,
    boundary,
)
from tornado_memcache import memcache as drop_in
from tornado_memcache import tornadoasyncmemcache as old_module
from tornado_memcache.address import Server
from tornado_memcache.pickles import Pickle, SignedPickle
from tornado_memcache.slots import slot_for

from .memcacheds import free_port
from .scripted import Close, Expect, Scripted, Send
from .test_round_trips import called
from .test_security import FACES, MB, SECRET, fetched

#: A value that must not be told. It is no word of any message.
MARKER = "xyzzy-value-of-somebody"
MARKED = MARKER.encode()
#: The same as digits, of which no number can be read.
DIGITS = b"98765432109876543210987"
LONG_KEY = "k" * 250


class Told(logging.Handler):
    """Everything that is said: log records as they are written, and errors that are added."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def add(self, error: Any) -> None:
        """Takes an error with its causes, or what else came to a callback."""
        if isinstance(error, (MultiResult, FailedKeys)):  # (an outcome is the caller's own)
            for one in error.errors.values():
                self.add(one)
            return
        self.texts += [str(error), repr(error)]
        if isinstance(error, BaseException):
            self.texts += traceback.format_exception(type(error), error, None)
            self.texts += map(repr, error.args)
            if error.__cause__ is not None:
                self.add(error.__cause__)

    def look(self) -> None:
        """Takes the repr of every object of the package.

        A dict or list is not looked at: it shows what it holds, and the
        outcomes among them are the caller's own.
        """
        for one in gc.get_objects():
            kind = type(one)
            if kind.__module__.startswith("tornado_memcache") and not isinstance(one, (dict, list)):
                self.texts.append(repr(one))

    def search(self, *forbidden: str | bytes) -> None:
        assert self.texts
        for one in forbidden:
            text = one if isinstance(one, str) else one.decode()
            assert [told for told in self.texts if text in told] == []
        # Keys are cut.
        assert [told for told in self.texts if "k" * 65 in told] == []


@pytest.fixture
def told(ledger) -> Iterator[Told]:
    ledger.excuse("log", "lost")
    told = Told()
    root = logging.getLogger()
    level = root.level
    root.addHandler(told)
    root.setLevel(logging.DEBUG)
    for quiet in ("asyncio",):  # (in debug mode it shows the results of futures, ours or not)
        logging.getLogger(quiet).setLevel(logging.WARNING)
    yield told
    root.removeHandler(told)
    root.setLevel(level)


async def failing(call: Any, told: Told) -> None:
    """Awaits what is to fail."""
    try:
        outcome = await call
    except Exception as error:
        told.add(error)
    else:
        if isinstance(outcome, (MultiResult, FailedKeys)):
            told.add(outcome)


async def in_callbacks(method: Any, *arguments: Any, told: Told) -> None:
    """The same call with a fail_callback, under a boundary, and with nobody to take it."""
    ended = asyncio.get_running_loop().create_future()

    def end(error: Any) -> None:
        told.add(error)
        ended.done() or ended.set_result(None)

    for how in ({"callback": end, "fail_callback": end}, {"callback": end}):
        ended = asyncio.get_running_loop().create_future()
        with boundary(end):
            method(*arguments, **how)
        await ended
    method(*arguments, callback=lambda outcome: None)
    await asyncio.sleep(0.01)


def broken_values() -> dict[bytes, tuple[bytes, int]]:
    """Stored values that cannot be read, each with the marker in it."""
    return {
        b"text": (b"\xff" + MARKED, 16),
        b"number": (MARKED, 2),
        b"long": (b"1" * 5000 + MARKED, 4),
        b"flags": (MARKED, 64),
        b"packed": (MARKED, 8),
        b"packed-cut": (zlib.compress(MARKED * 9)[:-9], 8),
        b"packed-text": (zlib.compress(b"\xff" + MARKED), 24),
        b"signed": (MARKED * 4, 32),
        b"pickle": (MARKED, 1),
        b"pickle-int": (b"I" + MARKED + b"\n.", 1),
        b"pickle-long": (b"L" + MARKED + b"\n.", 1),
        b"pickle-name": (b"c" + MARKED + b"\n" + MARKED + b"\n.", 1),
        b"pickle-attribute": (b"cos\n" + MARKED + b"\n.", 1),
        b"pickle-call": (b"cbuiltins\nint\n(V" + MARKED + b"\ntR.", 1),
        b"pickle-key": (
            b"cos\nenviron\ncoperator\ngetitem\n(cos\nenviron\nV" + MARKED + b"\ntR.",
            1,
        ),
    }


READERS: dict[str, Callable[[str], Any]] = {
    "Client": lambda address: Client([address]),
    "Client with Pickle": lambda address: Client([address], serializer=Pickle()),
    "Client with SignedPickle": lambda address: Client(
        [address], serializer=SignedPickle([SECRET])
    ),
    "memcache": lambda address: drop_in.Client([address], debug=1, cache_cas=True),
    "tornadoasyncmemcache": lambda address: old_module.Client([address], debug=1),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.gen_test(timeout=30)
async def test_a_value_that_cannot_be_read_is_not_told(reader, memcached, told, capfd):
    async with Client([memcached.address]) as raw:
        for key, (data, flags) in broken_values().items():
            await raw.request(Request(b"set", (key,), data, flags))
    with contextlib.closing(READERS[reader](memcached.address)) as mc:
        for key in broken_values():
            if isinstance(mc, old_module.Client):
                await failing(called(mc.get, key), told)
                with boundary(told.add):
                    mc.gets([key])
                    mc.get(key)
                mc.get(key)
                await fetched(mc, "miss")
                continue
            for call in (mc.get(key), mc.gets(key), mc.get_multi([key])):
                await failing(call, told)
            await in_callbacks(mc.get, key, told=told)
        told.look()
    told.texts += capfd.readouterr()
    told.search(MARKER, SECRET)


#: (what is asked, the bytes of the request, the answer)
ANSWERS: list[tuple[Callable[[Client], Any], bytes, bytes]] = [
    *((lambda mc: mc.get("k"), b"get k\r\n", answer) for answer in (
        MARKED + b"\r\n",
        b"VALUE k 0 3\r\n" + MARKED + b"\r\nEND\r\n",
        b"VALUE k 0 2\r\nab\r\n" + MARKED + b"\r\nEND\r\n",
        b"VALUE k 0 2\r\nab\r\n\r\n" + MARKED + b"\r\nEND\r\n",
        b"VALUE k 0 2\r\nab\r\nEND " + MARKED + b"\r\n",
        b"VALUE k " + MARKED + b" 2\r\nab\r\nEND\r\n",
        b"VALUE k 0 " + MARKED + b"\r\nab\r\nEND\r\n",
        b"VALUE k 0 2 " + MARKED + b"\r\nab\r\nEND\r\n",
        b"VALUE k 0 2 3 4 " + MARKED + b"\r\nab\r\nEND\r\n",
        b"HTTP/1.1 400 " + MARKED + b"\r\n\r\n",
        b"ERROR " + MARKED + b"\r\n",
        b"STORED " + MARKED + b"\r\n",
        b"VALUE k 0 2\r\nab\r\n" + MARKED * 200,
    )),
    (lambda mc: mc.gets("k"), b"gets k\r\n", b"VALUE k 0 1 " + DIGITS + b"\r\nv\r\nEND\r\n"),
    (lambda mc: mc.incr("k"), b"incr k 1\r\n", DIGITS + b"\r\n"),
    (lambda mc: mc.incr("k"), b"incr k 1\r\n", MARKED + b"\r\n"),
    (lambda mc: mc.delete("k"), b"delete k\r\n", b"DELETED " + MARKED + b"\r\n"),
    (lambda mc: mc.stats(), b"stats\r\n", b"STAT a 1\r\n" + MARKED + b"\r\n"),
    (lambda mc: mc.version(), b"version\r\n", MARKED + b"\r\n"),
    *((lambda mc: mc.set("k", MARKER), b"set k 16 0 23\r\n" + MARKED + b"\r\n", answer)
      for answer in (
        MARKED + b"\r\n",
        b"STORED " + MARKED + b"\r\n",
        b"SERVER_ERROR cannot store " + MARKED + b"\r\n",
        b"SERVER_ERROR object too large for cache: " + MARKED + b"\r\n",
        b"CLIENT_ERROR bad data chunk " + MARKED + b"\r\n",
        b"ERROR " + MARKED + b"\r\n",
        b"STORED\r\n" + MARKED + b"\r\n",
    )),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ANSWERS)))
@pytest.mark.gen_test(timeout=30)
async def test_a_line_out_of_step_may_be_a_value_and_is_not_told(number, told):
    ask, line, answer = ANSWERS[number]
    async with Scripted([Expect(line), Send(answer), Close()]) as server:
        async with Client([server.address], request_timeout=20) as mc:
            await failing(ask(mc), told)
            while mc._pools[0].counts()["open"]:  # (until the server has closed)
                await asyncio.sleep(0.001)
            told.look()
    told.search(MARKER, DIGITS)


@pytest.mark.gen_test(timeout=30)
async def test_words_from_the_middle_of_a_value_are_not_told(told):
    value = b"user=alice&password=" + MARKED
    ask = b"set k 0 0 %d\r\n%s\r\n" % (len(value), value)
    answer = b"SERVER_ERROR cannot store " + MARKED + b"\r\n"
    async with Scripted([Expect(ask), Send(answer)]) as server:
        async with Client([server.address], request_timeout=20) as mc:
            with pytest.raises(MemcacheError, match="repeat the value") as caught:
                await mc.request(Request(b"set", (b"k",), value))
            told.add(caught.value)
    told.search(MARKER)


@pytest.mark.gen_test(timeout=30)
async def test_the_words_of_a_server_are_printable_and_cut(told):
    words = b"\x1b[31m\nFAKE log line\x00\xff " + b"long " * 300
    for kind in (b"SERVER_ERROR ", b"CLIENT_ERROR "):
        async with Scripted([Expect(b"get k\r\n"), Send(kind + words + b"\r\n")]) as server:
            async with Client([server.address]) as mc:
                with pytest.raises(MemcacheError, match="FAKE log line") as caught:
                    await mc.get("k")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    for text in told.texts:
        assert "\x1b" not in text


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_ends_without_a_reply_tells_no_value(silent, told):
    refusing = f"127.0.0.1:{free_port()}"
    for address, how in (
        (silent.address, {}),
        (refusing, {}),
        (silent.address, {"max_pending": 1}),
    ):
        async with Client([address], request_timeout=0.05, dead_retry=0.01, **how) as mc:
            writes = [
                partial(mc.set, LONG_KEY, MARKER),
                partial(mc.set, LONG_KEY, MARKER, noreply=True),
                partial(mc.append, LONG_KEY, MARKER),
                partial(mc.cas, LONG_KEY, MARKER, 1),
                partial(mc.set_multi, {LONG_KEY: MARKER, "j": MARKED * 10_000}),
                partial(mc.request, Request(b"set", (LONG_KEY.encode(),), MARKED)),
                partial(mc.request_many, [Request(b"set", (b"k",), MARKED)]),
                partial(mc.get, LONG_KEY),
                partial(mc.get_multi, [LONG_KEY, "j"]),
            ]
            calls = [write() for write in writes]
            for write in writes:
                write(callback=told.add, fail_callback=told.add)
                write(callback=told.add)
                with boundary(told.add, timeout=0.02):
                    write()
            await asyncio.sleep(0)
            told.look()
            for call in calls:
                await failing(call, told)
            told.look()
            calls = [write(timeout=1) for write in writes]
            mc.close()
            for call in calls:
                await failing(call, told)
    told.search(MARKER)


@pytest.mark.gen_test(timeout=30)
async def test_a_face_cuts_keys_too(told):
    dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    faces = [old_module.Client(dead, debug=1), drop_in.Client(dead, debug=1)]
    with contextlib.closing(faces[0]) as old, contextlib.closing(faces[1]) as mc:
        for _ in range(3):
            with pytest.raises(RuntimeError) as caught:
                await called(old.set, LONG_KEY, MARKER)
            told.add(caught.value)
            told.texts.append(repr(await mc.set(LONG_KEY, MARKER)))
        assert str(caught.value).startswith("No available server for kkk")
        for wrong in (LONG_KEY + "k", LONG_KEY[:-1] + " ", b"k" * 66 + b"\n"):
            for client in (old, mc):
                with pytest.raises(Exception, match="(?i)key") as caught:
                    client.set(wrong, MARKER)
                told.add(caught.value)
    told.search(MARKER)


class Holder:
    """An object of a user's, whose repr shows what it holds."""

    def __repr__(self) -> str:
        return f"Holder({MARKER})"

    def on_value(self, value: Any) -> None:
        raise RuntimeError("in a callback")

    __call__ = on_value


@pytest.mark.gen_test(timeout=30)
async def test_a_callback_that_raises_tells_no_value(memcached, told):
    def takes(earlier: Any, value: Any) -> None:
        raise RuntimeError("in a callback")

    async def later(earlier: Any, value: Any) -> None:
        raise RuntimeError("in a coroutine callback")

    holder = Holder()
    callbacks = [
        holder.on_value,
        holder,
        partial(takes, MARKER),
        partial(partial(takes), MARKED),
        partial(later, {"earlier": MARKER}),
    ]
    async with Client([memcached.address]) as mc:
        await mc.set("k", MARKER)
        for callback in callbacks:
            mc.get("k", callback=callback)
            mc.incr("k", fail_callback=callback)
            with boundary(callback, catch=RuntimeError, once=True) as entry:
                mc.incr("k")
                mc.get("k", callback=callback)
                told.texts += [repr(entry), repr(entry.boundary)]
            await mc.get("k")
            await asyncio.sleep(0.01)
    assert sum("in a callback" in text for text in told.texts) >= len(callbacks)
    told.search(MARKER)


@pytest.mark.gen_test(timeout=30)
async def test_a_value_that_cannot_be_stored_is_not_told(silent, told):
    def small(kind: Any, **how: Any) -> Any:
        return kind([silent.address], max_value_size=1024, **how)

    values = [MARKER + "\udc80", MARKED * 100, [MARKER], {MARKER: 1.5}, (lambda: 0), MARKED * MB]
    clients = [
        small(Client),
        small(Client, serializer=Pickle()),
        small(Client, serializer=SignedPickle([SECRET])),
        small(Client, compress_over=0),
        drop_in.Client([silent.address], server_max_value_length=1024),
        small(old_module.Client),
    ]
    for mc in clients:
        with contextlib.closing(mc):
            for value in values:
                for name in ("set", "add", "append", "set_multi"):
                    method = getattr(mc, name, None)
                    arguments = ({"k": value},) if name == "set_multi" else ("k", value)
                    if method is None:
                        continue
                    try:
                        method(*arguments)
                    except Exception as error:
                        told.add(error)
    told.search(MARKER, SECRET)


def test_the_repr_of_what_holds_a_value_shows_its_size():
    request = Request(b"set", (LONG_KEY.encode(),), MARKED, 16, 60, argument=b"")
    item = Item(MARKED, 16, 7)
    reply = Reply(b"END", {LONG_KEY.encode(): item}, 0, MARKED, {"name": MARKER})
    counted = Reply(b"NUMBER", number=int(DIGITS))
    slot = slot_for(request, None, lambda reply: reply, 0.0)
    slot.reply = reply
    for one in (request, item, reply, counted, slot, [request], {"k": item}, (reply,)):
        for text in (repr(one), str(one), f"{one}"):
            assert MARKER not in text and DIGITS.decode() not in text
            assert "k" * 65 not in text
    assert repr(request).endswith(", 23 bytes>") and "'set'" in repr(request)
    assert repr(item) == "<Item of 23 bytes, flags 16>"
    assert repr(reply) == "<Reply 'END', 1 items>"
    # Wrong ones are shown too: a repr never raises.
    for wrong in (Request(5), Request(b"get", None, "text"), Item("text", None), Reply(None)):
        assert MARKER not in repr(wrong)  # type: ignore[arg-type]


#: The settings of a client that hold a secret: how each is given one. A setting
#: whose name says that it is one has to be here.
SECRETS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "serializer": lambda secret: {"serializer": SignedPickle([secret, secret + b"-old"])},
    "username": lambda secret: {"username": secret, "password": "p", "serializer": Pickle()},
    "password": lambda secret: {"username": "u", "password": secret, "serializer": Pickle()},
}
_SOUNDS_SECRET = re.compile("pass|secret|token|auth|cred|user|sign")


def test_every_setting_that_holds_a_secret_is_looked_at():
    for kind in FACES.values():
        for name in inspect.signature(kind).parameters:
            assert not _SOUNDS_SECRET.search(name) or name in SECRETS, name


@pytest.mark.parametrize("setting", SECRETS)
@pytest.mark.gen_test(timeout=30)
async def test_a_secret_is_in_no_repr_no_log_and_no_error(setting, memcached, silent, told):
    make = SECRETS[setting]
    for wrong in (b"xyzzy-secret", SECRET + b" ", SECRET.decode(), [SECRET.decode()], 5, None):
        try:
            told.add(Client(["a:1"], **make(wrong)))  # type: ignore[arg-type]
        except Exception as error:
            told.add(error)
    for address in (memcached.address, silent.address, f"127.0.0.1:{free_port()}"):
        how = make(SECRET)
        told.add(how.get("serializer"))
        async with Client([address], request_timeout=0.05, **how) as mc:
            told.add(mc)
            for key, (data, flags) in broken_values().items():
                await failing(mc.request(Request(b"set", (key,), data, flags)), told)
                await failing(mc.get(key), told)
            await failing(mc.set("k", {"a": 1}), told)
            await failing(mc.get("k"), told)
            with boundary(told.add):
                mc.set("k", {"a": 1})
                mc.get("k", callback=told.add)
            told.look()
            await asyncio.sleep(0.06)
        told.look()
    told.search(SECRET, SECRET.hex(), base64.b64encode(SECRET), repr(SECRET))


#: What is no server of ours, with a password in it as others take one.
WITH_A_PASSWORD: list[Any] = [
    "memcached://user:{}@127.0.0.1:1",
    "user:{}@127.0.0.1:1",
    "user:{}@127.0.0.1",
    ":{}@[::1]:1",
    "{}@127.0.0.1:1",
    "//user:{}@127.0.0.1:1",
    "[user:{}@::1]",
    "a:1,user:{}@b:1",
    "user:{}" + "x" * 100 + "@127.0.0.1:1",
    ("memcached://user:{}@127.0.0.1:1", 2),
    ("user:{}@127.0.0.1", 1, 1),
    Server("user:{}@h", 1),
    Server("{}@h", 0),
]


def with_secret(spec: Any) -> Any:
    if isinstance(spec, str):
        return spec.format(SECRET.decode())
    parts = [with_secret(part) if isinstance(part, str) else part for part in spec]
    return Server(*parts) if isinstance(spec, Server) else tuple(parts)


@pytest.mark.parametrize("spec", WITH_A_PASSWORD, ids=repr)
@pytest.mark.parametrize("kind", [*FACES.values(), old_module.ClientPool])
def test_a_password_that_was_written_into_a_server_is_not_told(kind, spec, told):
    with contextlib.closing(kind(["127.0.0.1:1"])) as client:
        for make_or_set in (kind, client.set_servers):
            with pytest.raises((ValueError, TypeError)) as caught:
                make_or_set([with_secret(spec)])
            told.add(caught.value)
        told.texts.append(repr(client))
    # (a traceback shows the lines of this file, which do not hold it)
    told.search(SECRET)
