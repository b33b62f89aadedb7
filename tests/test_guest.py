"""tornado_memcache.guest: one client on a real socket, and a handler of the test's behind it."""

import asyncio
import logging

import pytest

from tornado_memcache.errors import ConnectionFailed
from tornado_memcache.guest import FIRST_GUESS, Guest, Limits, Prompt
from tornado_memcache.protocol import Item, Reply, Request

from .asked import until
from .doors import Door, connect, leave


@pytest.mark.gen_test
async def test_replies_that_take_time_are_asked_for_at_once_and_come_in_order():
    under_way, most = 0, 0

    async def handler(request):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        key = request.keys[0]
        await asyncio.sleep(0.02 if key == b"k0" else 0.001)
        under_way -= 1
        return Reply(b"END", {key: Item(key, 0)})

    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"".join(b"get k%d\r\n" % number for number in range(300)))
        expected = b"".join(
            b"VALUE k%d 0 %d\r\nk%d\r\nEND\r\n" % (n, len(b"k%d" % n), n) for n in range(300)
        )
        assert await reader.readexactly(len(expected)) == expected
        await leave(writer)
    assert most == 100


@pytest.mark.gen_test
async def test_failures_of_the_handler_are_replies(expect_log):
    logged = expect_log("tornado_memcache.guest", "handler", level=logging.ERROR, times=2)

    async def later(request):
        raise ConnectionFailed("gone", server="h:1") if request.keys[0] == b"c" else KeyError()

    def handler(request):
        if request.keys[0] == b"a":
            raise ZeroDivisionError
        if request.keys[0] == b"x":
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            return cancelled
        return later(request)

    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"get a\r\nget b\r\nget c\r\nget x\r\nquit\r\n")
        assert await reader.read() == (
            b"SERVER_ERROR internal error\r\n" * 2
            + b"SERVER_ERROR gone (server h:1, phase reply)\r\n"
            + b"SERVER_ERROR cancelled\r\n"
        )
        await leave(writer)
    assert logged.count == 2


@pytest.mark.gen_test
async def test_closing_cancels_what_the_handler_still_does():
    started = asyncio.Event()
    ended = []

    async def handler(request):
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(request)

    async with Door(handler) as server:
        _, writer = await connect(server)
        writer.write(b"get a\r\nget b\r\n")
        await started.wait()
    await asyncio.sleep(0)
    assert ended == [Request(b"get", (b"a",)), Request(b"get", (b"b",))]
    await leave(writer)


@pytest.mark.gen_test
async def test_what_was_asked_before_the_end_is_answered_before_the_connection_is_closed():
    gate = asyncio.Event()

    async def handler(request):
        await gate.wait()
        return Reply(b"STORED")

    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"set a 0 0 1\r\n1\r\n" * 250 + b"set b 0 0 100\r\nhalf")
        writer.write_eof()
        await until(lambda: server.door.connected == 1)
        asyncio.get_running_loop().call_later(0.02, gate.set)
        assert await reader.read() == b"STORED\r\n" * 250
        await until(lambda: not server.door.connected)
        await leave(writer)


@pytest.mark.gen_test
async def test_what_was_asked_is_done_although_its_client_has_left():
    done = []

    async def handler(request):
        await asyncio.sleep(0)
        done.append(request.value)
        return Reply(b"STORED")

    async with Door(handler) as server:
        _, writer = await connect(server)
        # The last is half of a set: nobody is to be asked for that.
        writer.write(b"set a 0 0 1 noreply\r\n1\r\n" * 1000 + b"set a 0 0 1000 noreply\r\nhalf")
        await leave(writer)
        await until(lambda: len(done) == 1000 and not server.door.connected)
    assert done == [b"1"] * 1000


@pytest.mark.gen_test
async def test_what_only_reads_is_not_done_any_more_when_its_client_has_left():
    gate, asked = asyncio.Event(), []

    async def handler(request):
        asked.append((request.verb, len(request.keys)))
        await gate.wait()
        return Reply(b"END" if request.verb == b"get" else b"TOUCHED")

    async with Door(handler, limits=Limits(under_way=1)) as server:
        _, writer = await connect(server)
        writer.write(b"get" + b" k" * 1000 + b"\r\nget a\r\nnonsense\r\ntouch a 0\r\nget b\r\n")
        await until(lambda: asked)
        (guest,) = server.door._guests
        # (what it sends is not read at the moment: that it has left shows in a write)
        guest._transport.abort()
        await until(lambda: guest._lost)
        gate.set()
        await until(lambda: not server.door.connected)
        await leave(writer)
    assert asked == [(b"get", 1), (b"touch", 1)]


@pytest.mark.gen_test(timeout=30)
async def test_one_that_asks_10_000_times_and_never_reads_fills_no_memory():
    value, under_way, most, asked = b"x" * 100_000, 0, 0, 0

    async def handler(request):
        nonlocal under_way, most, asked
        asked += 1
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return Reply(b"END", {request.keys[0]: Item(bytes(value), 0)})

    async with Door(handler, limits=Limits(under_way=1_000_000)) as server:
        reader, writer = await connect(server)
        writer.write(b"get a\r\n" * 10_000)
        before = -1
        while before != asked:
            before = asked
            await asyncio.sleep(0.1)
        assert asked < 200  # (what the kernel and one write take of them)
        assert most <= 1 + 1_000_000 // len(value)
        other, writer_of_other = await connect(server)
        writer_of_other.write(b"get b\r\n")
        assert (await other.readline()).startswith(b"VALUE b")  # (others are served)
        await leave(writer_of_other)
        reply = b"VALUE a 0 100000\r\n" + value + b"\r\nEND\r\n"
        for _ in range(300):  # (it begins to read, and is served on)
            assert await reader.readexactly(len(reply)) == reply
        await leave(writer)


@pytest.mark.gen_test
async def test_who_does_not_take_its_replies_is_sent_away():
    def handler(request):
        return Reply(b"END", {request.keys[0]: Item(b"x" * 1_000_000, 0)})

    async with Door(handler, limits=Limits(write_timeout=0.3)) as server:
        _, writer = await connect(server)
        writer.write(b"get a\r\n" * 100)
        await until(lambda: server.door.sent_away)
        assert server.door.sent_away == {"it does not take its replies": 1}
        await until(lambda: not server.door.connected)
        await leave(writer)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "asks, hit", [(b"get ", b"VALUE a 0 100000\r\n"), (b"mg ", b"VA 100000\r\n")]
)
async def test_who_brings_far_more_than_was_thought_is_sent_away(asks, hit, expect_log):
    logged = expect_log("tornado_memcache.guest", "is sent away: [0-9]+ bytes wait", times=1)
    gate = asyncio.Event()

    async def handler(request):
        if request.keys[0] == b"first":
            await gate.wait()
        await asyncio.sleep(0)
        if request.verb == b"mg":
            return Reply(b"VA", value=b"x" * 100_000)
        return Reply(b"END", {request.keys[0]: Item(b"x" * 100_000, 0)})

    async with Door(handler, limits=Limits(under_way=100_000)) as server:
        reader, writer = await connect(server)
        writer.write(asks + b"a\r\n")
        await reader.readexactly(len(hit) + 100_000 + len(b"\r\n"))
        if hit.startswith(b"VALUE"):
            await reader.readexactly(len(b"END\r\n"))
        (guest,) = server.door._guests
        guest._guess = 1  # (as if all that it had asked before were small)
        writer.write(asks + b"first\r\n" + (asks + b"a\r\n") * 90)
        with pytest.raises(OSError):
            while await reader.read(65536):
                pass
            raise ConnectionResetError
        await until(lambda: not server.door.connected)
        await leave(writer)
    assert logged.count == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("under_way", [100 * FIRST_GUESS, 1000 * FIRST_GUESS])
@pytest.mark.parametrize("fails", [None, 0, 1, 2])
async def test_a_long_get_is_asked_for_in_parts_and_answered_as_one(fails, under_way):
    asked = []

    async def handler(request):
        number = len(asked)
        asked.append(request.keys)
        await asyncio.sleep(0)
        if number == fails:
            raise ConnectionFailed("gone", server="h:1")
        return Reply(b"END", {key: Item(key, 0) for key in request.keys if key != b"k7"})

    keys = [b"k%d" % number for number in range(250)]
    # (so little that parts follow one another, and enough that they do not)
    async with Door(handler, limits=Limits(under_way=under_way)) as server:
        reader, writer = await connect(server)
        writer.write(b"get " + b" ".join(keys) + b"\r\nget last\r\nquit\r\n")
        reply = await reader.read()
        await leave(writer)
    items = [b"VALUE %b 0 %d\r\n%b\r\n" % (key, len(key), key) for key in keys if key != b"k7"]
    behind = b"VALUE last 0 4\r\nlast\r\nEND\r\n"
    assert [len(part) for part in asked] == [100, 100, 50, 1]
    if fails is None:
        assert reply == b"".join(items) + b"END\r\n" + behind
    else:
        whole = b"".join(items[: max(0, 100 * fails - 1)])
        assert reply == whole + b"SERVER_ERROR gone (server h:1, phase reply)\r\n" + behind


@pytest.mark.gen_test
async def test_no_more_keys_are_asked_for_at_a_time_than_their_values_may_weigh():
    asked, under_way, size = [], 10 * FIRST_GUESS, 2 * FIRST_GUESS - 100

    async def handler(request):
        asked.append(len(request.keys))
        await asyncio.sleep(0)
        return Reply(b"END", {request.keys[0]: Item(b"x" * size, 0)})

    async with Door(handler, limits=Limits(under_way=under_way)) as server:
        reader, writer = await connect(server)
        line = b"get " + b" ".join([b"k"] * 50) + b"\r\n"
        writer.write(line * 2 + b"quit\r\n")
        reply = await reader.read()
        await leave(writer)
    # Ten as a guess; when it is seen that a value is twice as large, five.
    assert asked[:2] == [10, 5] and sum(asked) == 100 and max(asked[1:]) == 5
    value = b"VALUE k 0 %d\r\n%b\r\n" % (size, b"x" * size)
    assert reply == (value * 50 + b"END\r\n") * 2


@pytest.mark.gen_test
async def test_others_have_their_turn_while_one_asks_for_very_many_keys():
    asked = []

    def handler(request):
        if request.keys == (b"other",):
            others.append(sum(asked))
        elif not asked:
            # What the loop does next comes before most of these keys.
            asyncio.get_running_loop().call_soon(lambda: others.append(sum(asked)))
        asked.append(len(request.keys))
        return Reply(b"END")

    others = []
    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"get " + b"k " * 200_000 + b"\r\nget other\r\nquit\r\n")
        assert await reader.read() == b"END\r\n" * 2
        await leave(writer)
    soon, behind = others
    assert soon < 20_000 and behind == 200_000 and max(asked) <= 100


@pytest.mark.gen_test
async def test_a_reply_longer_than_a_write_goes_in_parts():
    items = {b"k%d" % number: Item(b"x" * 200_000, 0) for number in range(20)}

    async with Door(lambda request: Reply(b"END", items)) as server:
        reader, writer = await connect(server)
        writer.write(b"get " + b" ".join(items) + b"\r\nget " + b" ".join(items) + b"\r\n")
        whole = b"".join(
            b"VALUE %b 0 200000\r\n%b\r\n" % (key, item.value) for key, item in items.items()
        )
        expected = (whole + b"END\r\n") * 2
        assert await reader.readexactly(len(expected)) == expected
        await leave(writer)


class Prompts:
    """A handler that answers with a `Prompt` for each request, which a test ends."""

    def __init__(self):
        self.given = {}

    def __call__(self, request):
        loop = asyncio.get_running_loop()
        prompt = self.given[request.keys[0]] = Prompt(loop)
        return prompt

    async def asked(self, writer, *keys):
        """Sends gets of ``keys`` in one segment; returns what the handler gave for them."""
        writer.write(b"".join(b"get %b\r\n" % key for key in keys))
        await until(lambda: all(key in self.given for key in keys))
        return [self.given.pop(key) for key in keys]


@pytest.mark.gen_test
async def test_the_one_reply_that_is_due_is_written_by_what_brings_it():
    handler = Prompts()
    async with Door(handler) as server:
        reader, writer = await connect(server)
        for number in range(3):
            (prompt,) = await handler.asked(writer, b"a")
            (guest,) = server.door._guests
            assert guest.busy
            prompt.set_result(b"%d\r\n" % number)
            assert not guest.busy  # (in this very turn of the loop)
            assert await reader.readline() == b"%d\r\n" % number
        # One that is larger than a write as well.
        (prompt,) = await handler.asked(writer, b"large")
        prompt.set_result(b"x" * 1_000_000 + b"\r\n")
        assert await reader.readexactly(1_000_002) == b"x" * 1_000_000 + b"\r\n"
        await until(lambda: not guest.busy)
        await leave(writer)


@pytest.mark.gen_test
async def test_replies_that_come_in_one_turn_leave_in_one_write_and_in_order(monkeypatch):
    written, handler = [], Prompts()
    real = Guest._write
    monkeypatch.setattr(
        Guest,
        "_write",
        lambda guest, pieces: (written.append(b"".join(pieces)), real(guest, pieces)),
    )
    async with Door(handler) as server:
        reader, writer = await connect(server)
        for order in ("012", "021", "102", "120", "201", "210"):
            prompts = await handler.asked(writer, b"a", b"b", b"c")
            written.clear()
            for number in map(int, order):
                assert not written
                prompts[number].set_result(b"%d" % number)
            assert written == [b"012"]
            assert await reader.readexactly(3) == b"012"
        # The first of them does not wait for one that comes in a later turn.
        first, last = await handler.asked(writer, b"a", b"b")
        first.set_result(b"0")
        assert await reader.readexactly(1) == b"0"
        last.set_result(b"1")
        assert await reader.readexactly(1) == b"1"
        await leave(writer)


@pytest.mark.gen_test
async def test_prompts_among_futures_failures_and_what_is_done_at_once():
    futures, prompts = {}, Prompts()

    def handler(request):
        loop = asyncio.get_running_loop()
        if request.keys[0] == b"now":
            done = Prompt(loop)
            done.set_result(b"now\r\n")
            return done
        if request.keys[0].startswith(b"future"):
            return futures.setdefault(request.keys[0], loop.create_future())
        return prompts(request)

    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"get now\r\nget future1\r\n")
        a, b, c = await prompts.asked(writer, b"a", b"b", b"c")
        writer.write(b"get future2\r\nget now\r\n")
        await until(lambda: len(futures) == 2)
        c.set_result(b"c\r\n")
        futures[b"future2"].set_result(Reply(b"END"))
        b.cancel()
        a.set_exception(ConnectionFailed("gone", server="h:1"))
        futures[b"future1"].set_result(Reply(b"END"))
        expected = (
            b"now\r\nEND\r\nSERVER_ERROR gone (server h:1, phase reply)\r\n"
            b"SERVER_ERROR cancelled\r\nc\r\nEND\r\nnow\r\n"
        )
        assert await reader.readexactly(len(expected)) == expected
        (guest,) = server.door._guests
        assert not guest.busy and guest._undone == 0
        # It fails alone, and goes on.
        (prompt,) = await prompts.asked(writer, b"d")
        prompt.set_exception(ConnectionFailed("gone", server="h:1"))
        assert (await reader.readline()).startswith(b"SERVER_ERROR gone")
        (prompt,) = await prompts.asked(writer, b"e")
        writer.write_eof()
        await until(lambda: guest._ended)
        prompt.set_result(b"the last")
        assert await reader.read() == b"the last"
        await until(lambda: not server.door.connected)
        await leave(writer)


@pytest.mark.gen_test
async def test_the_door_is_told_of_what_came_together():
    begun = []
    async with Door(lambda request: Reply(b"STORED"), begun=begun.append) as server:
        reader, writer = await connect(server)
        for count in (1, 3, 1):
            writer.write(b"delete a\r\n" * count)
            assert await reader.readexactly(8 * count) == b"STORED\r\n" * count
        assert begun == [1, 3, 1]
        await leave(writer)
