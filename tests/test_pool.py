"""Which connection takes a call, what is tried again, and when a server is dead."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest
from tornado.netutil import Resolver

from tornado_memcache import (
    Client,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    ProtocolError,
    ServerDead,
    ServerError,
    Timeout,
    TooManyCalls,
    boundary,
)
from tornado_memcache import deadlines as deadlines_module
from tornado_memcache.health import FIRST_PAUSE

from .asked import until
from .hand import Shifted
from .memcacheds import free_port
from .scripted import Close, Expect, Reset, Scripted, Send, Sleep, Until

LOG = "tornado_memcache"
HIT = b"VALUE k 0 1\r\nv\r\nEND\r\n"
GET = Expect(b"get k\r\n")


def counts(client: Client) -> dict[str, int]:
    return client._pools[0].counts()


# -- retry: once, on a new connection, only what only reads and had no byte


@pytest.mark.gen_test
async def test_a_reused_connection_that_closes_is_not_noticed_by_a_get():
    async with Scripted([GET, Send(HIT), GET, Close()], [GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            assert await client.get("k") == b"v"
            assert await client.get("k") == b"v"
            assert server.connections == 2


@pytest.mark.gen_test
async def test_a_reset_before_any_byte_is_tried_again_once(expect_log):
    expect_log(LOG, "fails: get 'k'")
    async with Scripted([GET, Send(HIT), GET, Reset()], [GET, Reset()]) as server:
        async with Client([server.address]) as client:
            await client.get("k")
            with pytest.raises(ConnectionFailed) as caught:
                await client.get("k")
            assert not caught.value.maybe_applied
            assert caught.value.server == server.address
            assert server.connections == 3 - 1


@pytest.mark.gen_test
async def test_nothing_is_tried_again_once_a_byte_of_its_reply_came(expect_log):
    expect_log(LOG, "fails: get 'k'")
    script = [GET, Send(HIT), GET, Send(HIT[:10]), Close()]
    async with Scripted(script, [GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            await client.get("k")
            with pytest.raises(ConnectionFailed):
                await client.get("k")
            assert server.connections == 1


@pytest.mark.gen_test
async def test_a_write_whose_bytes_left_is_not_tried_again(expect_log):
    expect_log(LOG, "fails: set 'k'")
    script = [GET, Send(HIT), Expect(b"set k 0 0 1\r\nv\r\n"), Close()]
    async with Scripted(script, [GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            await client.get("k")
            with pytest.raises(ConnectionFailed) as caught:
                await client.set("k", b"v")
            assert caught.value.maybe_applied
            assert "may have taken effect" in str(caught.value)


@pytest.mark.gen_test
async def test_a_server_that_was_restarted_between_two_calls_is_not_noticed(start_memcached):
    server = start_memcached()
    async with Client([server.address]) as client:
        await client.set("k", "v")
        server.kill()
        server.restart()
        assert await client.get("k") is None
        assert await client.set("k", "w")
        assert await client.get("k") == "w"


@pytest.mark.gen_test
async def test_what_is_under_way_at_a_disconnect_is_asked_again_on_a_new_connection(monkeypatch):
    """Not on one of the others, which are closed as well: that would count as tried."""
    # (The clock stands still: all of them were opened at the moment of the first loss.)
    monkeypatch.setattr(deadlines_module, "clock", Shifted(lambda: 1000.0))
    both = Expect(b"get k\r\nset j 0 0 1\r\nv\r\n")
    async with Scripted([GET], [], [], [both, Send(HIT + b"STORED\r\n")], []) as server:
        async with Client([server.address], request_timeout=600, min_connections=3) as client:
            client.warm_up()
            await until(lambda: counts(client)["idle"] == server.connections == 3)
            read = client.get("k")
            await until(lambda: server.received[0] == GET.data)
            write = client.set("j", b"v")  # (it leaves after this turn)
            client.disconnect()
            assert await read == b"v"
            assert await write is True
            assert server.received[:4] == [GET.data, b"", b"", both.data]
            assert counts(client)["pending"] == 0
            await until(lambda: counts(client)["idle"] == 3)  # (it is warmed up by a call)
            await until(lambda: server.connections == 6)


# -- what a reply does to its connection


@pytest.mark.gen_test
async def test_a_server_error_keeps_the_connection():
    async with Scripted(
        [GET, Send(b"SERVER_ERROR busy\r\n"), GET, Send(HIT)],
    ) as server:
        async with Client([server.address]) as client:
            with pytest.raises(ServerError, match="busy"):
                await client.get("k")
            assert await client.get("k") == b"v"
            assert server.connections == 1


@pytest.mark.gen_test
async def test_a_client_error_on_storage_closes_the_connection():
    script = [Expect(b"set k 0 0 1\r\nv\r\n"), Send(b"CLIENT_ERROR bad\r\nERROR\r\n")]
    async with Scripted(script, [GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            with pytest.raises(ClientError, match="bad"):
                await client.set("k", b"v")
            assert await client.get("k") == b"v"
            assert server.connections == 2


@pytest.mark.gen_test
async def test_garbage_fails_all_that_is_owed_behind_it(expect_log):
    expect_log(LOG, "fails")
    script = [GET, Send(HIT), Expect(b"get a\r\nget b\r\n"), Send(b"VALUE x 0 1\r\nv\r\nEND\r\n")]
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            await client.get("k")
            first = client.get("a")
            second = client.get("b")
            for call in (first, second):
                with pytest.raises(ProtocolError) as caught:
                    await call
                assert caught.value.server == server.address


@pytest.mark.gen_test
async def test_a_callback_before_garbage_does_not_send_on_that_connection():
    script = [GET, Send(HIT), Expect(b"get a\r\n"), Send(b"END\r\nstray\r\n")]
    async with Scripted(script, [GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            await client.get("k")
            values = []
            client.get("a", callback=lambda _: client.get("k", callback=values.append))
            await until(lambda: values == [b"v"])
            assert server.connections == 2


@pytest.mark.gen_test
async def test_bytes_while_nothing_is_owed_close_an_idle_connection():
    script = [GET, Send(HIT), Sleep(0.02), Send(b"VALUE k 0 1\r\nw\r\nEND\r\n")]
    async with Scripted(script, [GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            await client.get("k")
            await until(lambda: counts(client)["open"] == 0)
            assert await client.get("k") == b"v"


@pytest.mark.gen_test
async def test_an_error_after_a_noreply_cannot_be_attributed(expect_log):
    expect_log(LOG, "fails: get 'k'")
    script = [
        GET,
        Send(HIT),
        Expect(b"set k 0 0 1 noreply\r\nv\r\nget k\r\n"),
        Send(b"SERVER_ERROR out of memory\r\n"),
    ]
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            await client.get("k")
            written = client.set("k", b"v", noreply=True)
            with pytest.raises(ProtocolError, match="attributed"):
                await client.get("k")
            assert await written is True


@pytest.mark.gen_test
async def test_too_many_connections_fails_the_call_and_backs_off(expect_log):
    expect_log(LOG, "dead|fails", times=None)
    script = [Send(b"ERROR Too many open connections\r\n"), Close()]
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            with pytest.raises(ConnectionFailed, match="limit of connections"):
                await client.get("k")
            with pytest.raises(ServerDead):
                await client.get("k")
            assert server.connections == 1


AT_LIMIT = b"ERROR Too many open connections\r\n"


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("size", [1, 5, 6, len(AT_LIMIT) - 3, len(AT_LIMIT)])
@pytest.mark.gen_test
async def test_too_many_connections_is_known_by_any_part_of_it_and_nobody_waits_for_the_rest(
    size, asked, expect_log
):
    """Nothing is owed: only a noreply request was sent, or none."""
    expect_log(LOG, "taken for dead: the server is at its limit of connections", times=1)
    silent_set = Expect(b"set k 0 0 1 noreply\r\nv\r\n")
    script = [*([silent_set] if asked else []), Send(AT_LIMIT[:size])]  # (and no more)
    async with Scripted(script) as server:
        how = {"request_timeout": 600, "connect_timeout": 600, "min_connections": int(not asked)}
        async with Client([server.address], **how) as client:
            if asked:
                assert await client.set("k", b"v", noreply=True) is True
            else:
                client.warm_up()
            await until(lambda: client._pools[0].health.dead)
            assert counts(client)["open"] == 0 and server.connections == 1
            with pytest.raises(ServerDead):
                await client.get("k")


@pytest.mark.gen_test
async def test_an_error_after_a_noreply_request_is_no_refused_connection():
    script = [Expect(b"set k 0 0 1 noreply\r\nv\r\n"), Send(b"ERROR\r\n")]
    async with Scripted(script, [GET, Send(HIT)]) as server:
        async with Client([server.address], request_timeout=600) as client:
            assert await client.set("k", b"v", noreply=True) is True
            await until(lambda: counts(client)["open"] == 0)
            assert await client.get("k") == b"v"
            assert not client._pools[0].health.deaths


async def accepted(listener):
    """Returns the other side of the connection that was made, with a request in its socket."""
    listener.setblocking(False)
    peer, _ = await asyncio.get_running_loop().sock_accept(listener)
    peer.setblocking(False)
    while True:
        try:
            if peer.recv(1, socket.MSG_PEEK):
                return peer
        except BlockingIOError:
            await asyncio.sleep(0.001)


@pytest.mark.gen_test
async def test_what_the_server_said_is_read_though_the_next_write_fails(expect_log):
    """Refused at the limit with a request unread: the line comes first, then a reset."""
    expect_log(LOG, "limit of connections", times=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        async with Client([f"{host}:{port}"]) as client:
            first = client.set("j", b"v")
            peer = await accepted(listener)
            peer.sendall(b"ERROR Too many open connections\r\n")
            peer.close()
            second = client.set("k", b"v")  # its send fails: a reset is there
            for call in (first, second):
                with pytest.raises(ConnectionFailed, match="limit of connections") as caught:
                    await call
                assert not caught.value.maybe_applied


@pytest.mark.parametrize("line", [AT_LIMIT, b"CLIENT_ERROR unauthenticated\r\n"])
@pytest.mark.gen_test
async def test_what_a_proxy_passes_on_in_mid_stream_is_one_calls_error_and_no_write_goes_twice(
    line,
):
    asked = b"".join(b"incr %b 1\r\n" % key for key in (b"a", b"b", b"c"))
    script = [Expect(b"get k\r\n"), Send(b"END\r\n"), Expect(b"incr a 1\r\n")]
    script += [Expect(asked[len(b"incr a 1\r\n") :]), Send(b"1\r\n" + line + b"1\r\n")]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=600, max_connections=2) as client:
            assert await client.get("k") is None
            calls = [client.incr(key) for key in "abc"]
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [ends[0], type(ends[1]), ends[2]] == [1, ClientError, 1]
            assert not ends[1].maybe_applied and server.connections == 1
            assert server.received == [b"get k\r\n" + asked]


RESET = b"\1\0\0\0\0\0\0\0"  # (SO_LINGER, no time)


@pytest.mark.gen_test
async def test_a_reply_found_when_a_send_fails_is_delivered_later_and_the_send_is_tried_again():
    """No callback runs inside a call, and what was refused at the first byte was not sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        async with Client([f"{host}:{port}"]) as client:
            seen, inside = [], False

            def on_value(value):
                assert not inside
                seen.append(value)

            client.get("j", callback=on_value)
            peer = await accepted(listener)
            peer.sendall(b"VALUE j 0 1\r\nv\r\nEND\r\n")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            inside = True
            calls = [
                client.set("k", b"1", noreply=True),
                client.set("k", b"2"),
                client.set("k", b"3", noreply=True),
                client.get("k"),
            ]
            (connection,) = client._pools[0]._connections
            connection.flush()
            assert connection._stream.refuses and connection.owing == 5 and seen == []
            inside = False
            peer = await accepted(listener)
            assert seen == [b"v"]
            assert peer.recv(1000) == (
                b"set k 0 0 1 noreply\r\n1\r\nset k 0 0 1\r\n2\r\n"
                b"set k 0 0 1 noreply\r\n3\r\nget k\r\n"
            )
            peer.sendall(b"STORED\r\nVALUE k 0 1\r\n3\r\nEND\r\n")
            assert await asyncio.gather(*calls) == [True, True, True, b"3"]
            peer.close()


@pytest.mark.gen_test
async def test_bytes_that_nobody_asked_for_are_no_reply_to_what_could_not_be_sent():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        async with Client([f"{host}:{port}"]) as client:
            first = client.get("k")
            peer = await accepted(listener)
            peer.sendall(HIT)
            assert await first == b"v"
            peer.sendall(b"NOT_STORED\r\n")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            (connection,) = client._pools[0]._connections
            connection.rested_at = float("inf")  # (it has not rested: nobody looks first)
            call = client.set("k", b"v")
            assert connection._stream.refuses
            peer = await accepted(listener)
            peer.sendall(b"STORED\r\n")
            assert await call is True
            peer.close()


# -- late connections


@pytest.mark.gen_test
async def test_a_late_reply_is_never_seen_and_the_connection_is_used_again(expect_log):
    expect_log(LOG, "fails: get 'k'")
    script = [GET, Sleep(0.15), Send(HIT), Expect(b"get j\r\n"), Send(b"END\r\n")]
    async with Scripted(script, [GET, Send(HIT)]) as server:
        async with Client([server.address], request_timeout=0.1) as client:
            with pytest.raises(Timeout) as caught:
                await client.get("k")
            assert caught.value.phase == "reply"
            assert counts(client)["late"] == 1
            await until(lambda: counts(client)["idle"] == 1)
            assert await client.get("j") is None
            assert server.connections == 1


@pytest.mark.gen_test
async def test_a_late_connection_is_closed_one_request_timeout_later(expect_log):
    expect_log(LOG, "fails: get 'k'")
    async with Scripted([GET]) as server:
        async with Client([server.address], request_timeout=0.1) as client:
            begun = time.monotonic()
            with pytest.raises(Timeout):
                await client.get("k")
            assert client._deadlines.armed
            await until(lambda: counts(client)["open"] == 0)
            assert 0.19 < time.monotonic() - begun < 0.45
            await asyncio.sleep(0)
            assert not client._deadlines.armed


@pytest.mark.gen_test
async def test_a_late_connection_waits_for_the_longest_timeout_on_it():
    script = [GET, Sleep(0.35), Send(HIT)]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=0.1) as client:
            assert await client.get("k", timeout=0.6) == b"v"
            assert server.connections == 1


@pytest.mark.gen_test
async def test_a_short_timeout_makes_nothing_late(expect_log):
    expect_log(LOG, "fails: get 'k'")
    script = [GET, Sleep(0.1), Send(HIT), Expect(b"get k\r\n"), Send(HIT)]
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            with pytest.raises(Timeout):
                await client.get("k", timeout=0.02)
            assert counts(client)["late"] == 0
            assert await client.get("k") == b"v"
            assert server.connections == 1


@pytest.mark.gen_test
async def test_a_cancelled_call_on_a_stalled_connection_is_noticed():
    async with Scripted([GET], [Expect(b"get j\r\n"), Send(b"END\r\n")]) as server:
        async with Client([server.address], request_timeout=0.1) as client:
            call = client.get("k")
            await until(lambda: counts(client)["busy"] == 1)
            call.cancel()
            await until(lambda: counts(client)["busy"] == 0)  # (late, and then closed)
            assert await client.get("j") is None


# -- order


@pytest.mark.gen_test
async def test_a_key_with_an_unanswered_write_stays_on_its_connection(expect_log):
    expect_log(LOG, "fails: set 'k'")
    store = Expect(b"set k 0 0 1\r\n1\r\n")
    script = [GET, Send(b"END\r\n"), store, Sleep(0.2), Send(b"STORED\r\n"), GET, Send(HIT)]
    async with Scripted(script, [Expect(b"get j\r\n"), Send(b"END\r\n")]) as server:
        async with Client([server.address], request_timeout=0.15) as client:
            await client.get("k")
            with pytest.raises(Timeout):
                await client.set("k", b"1")
            same = client.get("k")
            assert await client.get("j") is None
            assert await same == b"v"
            assert server.connections == 2


@pytest.mark.gen_test
async def test_a_large_write_and_a_get_of_its_key_in_one_tick(memcached):
    async with Client([memcached.address]) as client:
        for number in range(20):
            value = b"%d" % number * 200_000
            client.set("big", value)
            assert await client.get("big") == value


@pytest.mark.gen_test
async def test_large_work_keeps_off_the_connection_of_small_calls(memcached):
    async with Client([memcached.address]) as client:
        await client.set("small", b"s")
        await client.set("big", b"b" * 1_000_000)
        await client.get("small")
        calls = [client.set("big", b"c" * 1_000_000) for _ in range(3)]
        assert await client.get("small") == b"s"
        await asyncio.gather(*calls)
        assert counts(client)["open"] > 1


@pytest.mark.gen_test
async def test_a_write_that_ends_before_its_bytes_left_is_never_sent():
    async with Scripted([GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            call = client.set("k", b"never")
            call.cancel()
            assert await client.get("k") == b"v"
            assert b"never" not in server.received[0]


# -- waiting and limits


@pytest.mark.gen_test
async def test_a_thousand_cold_calls_open_no_more_than_max_connections(memcached):
    async with Client([memcached.address]) as client:
        before = int(memcached.stats()["total_connections"])
        assert await asyncio.gather(*[client.get(f"k{n}") for n in range(1000)]) == [None] * 1000
        assert int(memcached.stats()["total_connections"]) - before - 1 <= 4


@pytest.mark.gen_test
async def test_too_many_calls_is_the_outcome_at_once(silent, expect_log):
    expect_log(LOG, "max_pending")
    async with Client([silent.address], max_pending=10) as client:
        calls = [client.set(f"k{n}", b"v") for n in range(10)]
        begun = time.monotonic()
        with pytest.raises(TooManyCalls, match="10 calls"):
            await client.set("k", b"v")
        assert time.monotonic() - begun < 0.2
        for call in calls:
            call.cancel()


@pytest.mark.gen_test
async def test_nobody_connects_for_nobody(silent):
    async with Client([silent.address]) as client:
        call = client.get("k")
        assert counts(client)["connecting"] == 1
        call.cancel()
        await asyncio.sleep(0)
        assert counts(client)["open"] == 0
        await asyncio.sleep(0)
        assert not client._deadlines.armed


@pytest.mark.gen_test
async def test_the_wait_counts_against_the_deadline(silent, expect_log):
    expect_log(LOG, "fails|dead", times=None)
    async with Client([silent.address], request_timeout=0.1, max_connections=1) as client:
        first = client.get("a")
        await until(lambda: counts(client)["busy"] == 1)
        with pytest.raises(Timeout):
            await first
        begun = time.monotonic()
        with pytest.raises(Timeout) as caught:
            await client.get("b", timeout=0.05)
        assert caught.value.phase == "waiting"
        assert 0.04 < time.monotonic() - begun < 0.3


class Once(Resolver):
    """Finds a name once, and never again."""

    def initialize(self):
        self.asked = 0

    async def resolve(self, host, port, family=socket.AF_UNSPEC):
        self.asked += 1
        if self.asked > 1:
            await asyncio.get_running_loop().create_future()
        return [(socket.AF_INET, ("127.0.0.1", port))]


def client_of_one_connection(server):
    """A client that connects to ``server`` once; the next time it is held up by the look-up."""
    name = f"memcached.test:{server.address.split(':')[1]}"
    return Client([name], resolver=Once(), request_timeout=0.2, max_connections=1)


#: Two gets that share a line, of which the server says nothing, and closes.
SHARED = [GET, Send(HIT), GET, Expect(b"get a b\r\n"), Sleep(0.1), Close()]


@pytest.mark.gen_test
async def test_what_waits_on_in_line_is_not_lost_while_others_are_told(expect_log):
    """A callback that is told of its timeout calls again, before the line is in order again."""
    expect_log(LOG, "fails: get")
    told = []
    async with Scripted(SHARED) as server:
        async with client_of_one_connection(server) as client:

            def call_again(error):
                client.get("c", fail_callback=told.append)
                told.append(counts(client)["waiting"])

            await client.get("k")
            first = client.get("k")
            patient = client.get("a", timeout=30)
            client.get("b", fail_callback=call_again)
            with pytest.raises(Timeout):
                await first
            with pytest.raises(Timeout, match="resolving"):
                await patient  # (with the connection, long before its own deadline)
            await until(lambda: len(told) == 2)
            assert told[0] == 2, "the patient one, and the one that came anew"
            assert (counts(client)["waiting"], counts(client)["pending"]) == (0, 0)


@pytest.mark.gen_test
async def test_a_client_that_is_closed_by_a_callback_of_the_line_fails_the_rest(expect_log):
    expect_log(LOG, "fails: get")
    async with Scripted(SHARED) as server:
        client = client_of_one_connection(server)
        await client.get("k")
        first = client.get("k")
        patient = client.get("a", timeout=30)
        client.get("b", fail_callback=lambda error: client.close())
        with pytest.raises(Timeout):
            await first
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(patient, 5)
        assert (counts(client)["waiting"], counts(client)["pending"]) == (0, 0)


# -- death


def closed_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.gen_test
async def test_a_closed_port_fails_at_once_and_is_dead(expect_log):
    dead = expect_log(LOG, "taken for dead", times=1)
    async with Client([closed_port()]) as client:
        begun = time.monotonic()
        with pytest.raises(ConnectionFailed) as caught:
            await client.get("k")
        assert time.monotonic() - begun < 0.2
        assert caught.value.phase == "connecting"
        assert caught.value.errno
        with pytest.raises(ServerDead, match="next try in"):
            await client.get("k")
        assert dead.count == 1


@pytest.mark.gen_test
async def test_a_dead_server_is_back_by_one_probe(start_memcached, expect_log, caplog):
    caplog.set_level(logging.INFO, LOG)
    expect_log(LOG, "taken for dead", times=1)
    server = start_memcached()
    async with Client([server.address]) as client:
        await client.set("k", "v")
        server.kill()
        with pytest.raises(ConnectionFailed):
            await client.get("k")
        server.restart()
        await asyncio.sleep(0.26)
        before = int(server.stats()["total_connections"])
        outcomes = await asyncio.gather(
            *[client.get("k") for _ in range(50)], return_exceptions=True
        )
        assert outcomes[0] is None
        assert all(isinstance(one, ServerDead) for one in outcomes[1:])
        assert await asyncio.gather(*[client.get("k") for _ in range(50)]) == [None] * 50
        assert int(server.stats()["total_connections"]) - before - 1 == 1
        assert "answers again" in caplog.text


@pytest.mark.gen_test
async def test_a_stalled_server_dies_after_three_silences(expect_log):
    expect_log(LOG, "fails", times=1)
    dead = expect_log(LOG, "taken for dead", times=1)
    async with Scripted([]) as server:
        async with Client([server.address], request_timeout=0.05) as client:
            for _ in range(3):
                assert dead.count == 0
                outcomes = await asyncio.gather(
                    *[client.get(f"k{n}") for n in range(20)], return_exceptions=True
                )
                assert {type(one) for one in outcomes} == {Timeout}
            with pytest.raises(ServerDead):
                await client.get("k")


@pytest.mark.gen_test
async def test_connects_during_a_death_follow_the_doubling_pauses(expect_log, monkeypatch):
    expect_log(LOG, "taken for dead", times=1)
    shift = 0.0
    real = time.monotonic
    monkeypatch.setattr(deadlines_module, "clock", lambda: real() + shift)
    address = closed_port()
    async with Client([address]) as client:
        tries = 0
        for _ in range(200):
            try:
                await client.get("k")
            except ConnectionFailed:
                tries += 1
            except ServerDead:
                pass
            shift += 0.05
        # 10 s: at 0, 0.25, 0.75, 1.65, 2.55, 4.35 and 7.95 s, a tenth less each for the jitter.
        assert 6 <= tries <= 8


# -- connections that are kept warm


@pytest.mark.gen_test
@pytest.mark.parametrize("closes", [Close, Reset])
async def test_a_warm_connection_that_was_never_asked_may_be_closed_by_its_server(closes):
    """As an idle_timeout does, again and again: it is opened anew, and nobody is dead."""
    async with Scripted([Sleep(2 * FIRST_PAUSE), closes()]) as server:
        async with Client([server.address], min_connections=4) as client:
            client.warm_up()
            await until(lambda: server.connections >= 9, 20)
            health = client._pools[0].health
            assert (health.deaths, health.troubled) == (0, False)


@pytest.mark.gen_test
@pytest.mark.parametrize("least", [0, 1, 3])
async def test_a_warm_up_is_done_when_every_server_has_its_connections(start_memcached, least):
    servers = [start_memcached() for _ in range(2)]
    addresses = [server.address for server in servers]
    async with Client(addresses, min_connections=least) as client:
        assert await client.warm_up() is None
        assert [pool.counts()["open"] for pool in client._pools] == [max(least, 1)] * 2
        assert await client.warm_up() is None  # (they are there)
        client.disconnect()
        assert await client.warm_up() is None
        assert [pool.counts()["idle"] for pool in client._pools] == [max(least, 1)] * 2


@pytest.mark.gen_test
async def test_a_warm_up_that_fails_is_done_too_and_decides_nothing(memcached, expect_log):
    expect_log(LOG, "no connection is kept warm: cannot connect", times=1)
    failures: list[object] = []
    async with Client([memcached.address, f"127.0.0.1:{free_port()}"]) as client:
        with boundary(failures.append):
            assert await client.warm_up() is None
        assert [pool.counts()["open"] for pool in client._pools] == [1, 0]
        assert not client._pools[1].health.dead and failures == []


@pytest.mark.gen_test
async def test_a_warm_up_that_nobody_awaits_disturbs_nobody(memcached):
    async with Client([memcached.address]) as client:
        client.warm_up().cancel()
        call = client.get("k")
        call.cancel()  # (who waits for the same connection does not take it away)
        await until(lambda: client._pools[0].counts()["idle"] == 1)
        assert client._pools[0].losses == 0


@pytest.mark.gen_test
async def test_a_warm_up_ends_with_its_client():
    async with Scripted([Until(lambda: False)]) as server:
        how = {"request_timeout": 60, "connect_timeout": 60}
        client = Client([server.address], username="a", password="b", **how)
        warmed = client.warm_up()
        await until(lambda: client._pools[0].phase_of(None) == "authenticating")
        assert not warmed.done()
        client.close()
        assert await warmed is None and await client.warm_up() is None


@pytest.mark.gen_test
async def test_a_warm_connection_that_is_closed_at_once_was_refused(expect_log):
    expect_log(LOG, "is taken for dead")
    async with Scripted([Close()]) as server:
        async with Client([server.address], min_connections=4) as client:
            client.warm_up()
            await until(lambda: client._pools[0].health.dead)


class Moved(Resolver):
    """Finds what is there the first time, and then a port where nobody listens."""

    def initialize(self):
        self.asked, self.moved = 0, True

    async def resolve(self, host, port, family=socket.AF_UNSPEC):
        self.asked += 1
        found = port
        if self.asked > 1 and self.moved:
            found = int(closed_port().split(":")[1])
        return [(socket.AF_INET, ("127.0.0.1", found))]


@pytest.mark.gen_test(timeout=30)
async def test_a_connection_for_nobody_that_is_refused_is_tried_again_after_a_pause_and_told_once(
    memcached, expect_log, monkeypatch
):
    """The server takes no more connections, and answers on the one that it has."""
    told = expect_log(LOG, "no connection is kept warm", times=1)
    clock = Shifted(lambda: 1000.0)  # (it stands still: a pause ends when the test says so)
    monkeypatch.setattr(deadlines_module, "clock", clock)
    moved = Moved()
    named = memcached.address.replace("127.0.0.1", "cache.example")
    async with Client([named], resolver=moved, min_connections=2) as client:
        for tries in range(1, 5):
            for _ in range(125):
                assert await client.get("k") is None
            await until(lambda: counts(client)["connecting"] == 0)
            assert (moved.asked, told.count) == (1 + tries, 1)
            clock.shift += FIRST_PAUSE
        assert not client._pools[0].health.deaths
        moved.moved = False
        assert await client.get("k") is None
        await until(lambda: counts(client)["idle"] == 2)


@pytest.mark.gen_test
async def test_warming_up_again_and_again_is_one_connect_a_pause(expect_log, monkeypatch):
    """Though no connection is open that calls could live with."""
    told = expect_log(LOG, "no connection is kept warm", times=1)
    clock = Shifted(lambda: 1000.0)
    monkeypatch.setattr(deadlines_module, "clock", clock)
    moved = Moved()
    moved.asked = 1
    async with Client(["cache.example"], resolver=moved, min_connections=2) as client:
        for tries in range(1, 4):
            for _ in range(10):
                client.warm_up()
                await until(lambda: counts(client)["open"] == 0)
                assert (moved.asked, told.count) == (1 + tries, 1)
            clock.shift += FIRST_PAUSE
