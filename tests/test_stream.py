"""Segments in, pieces out, and one word to the receiver when it is over."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from tornado.iostream import StreamClosedError

from tornado_memcache.stream import MOST_SEGMENTS, SegmentStream


class Receiver:
    def __init__(self, buffer=None):
        self.buffer = buffer
        self.data = b""
        self.counts = 0
        self.ended = []

    def receiving(self):
        return None if self.buffer is None else memoryview(self.buffer)[self.counts :]

    def received(self, data):
        self.data += data

    def received_into(self, count):
        self.counts += count

    def stream_closed(self, error):
        self.ended.append(error)


@pytest.fixture
def pair(io_loop):
    ours, theirs = socket.socketpair()
    stream = SegmentStream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


async def turns(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("did not come true")


@pytest.mark.gen_test
async def test_a_segment_goes_to_the_receiver_at_once(pair):
    stream, theirs = pair
    receiver = stream.receiver = Receiver()
    assert not stream.read_segment()
    theirs.sendall(b"one two")
    assert stream.read_segment()
    assert receiver.data == b"one two"


@pytest.mark.gen_test
async def test_without_a_receiver_nothing_is_read(pair):
    stream, theirs = pair
    theirs.sendall(b"kept")
    assert not stream.read_segment()
    receiver = stream.receiver = Receiver()
    assert stream.read_segment()
    assert receiver.data == b"kept"


@pytest.mark.gen_test
async def test_a_receiver_may_give_its_own_buffer(pair):
    stream, theirs = pair
    receiver = stream.receiver = Receiver(bytearray(8))
    theirs.sendall(b"12345678")
    assert stream.read_segment()
    assert (bytes(receiver.buffer), receiver.counts) == (b"12345678", 8)


@pytest.mark.gen_test
async def test_a_stream_that_pauses_leaves_what_comes_and_the_end_to_be_read_when_it_resumes(pair):
    stream, theirs = pair
    receiver = stream.receiver = Receiver()
    stream.set_close_callback(lambda: None)  # (so that the loop watches it)
    theirs.sendall(b"one")
    await turns(lambda: receiver.data == b"one")
    stream.pause()
    theirs.sendall(b" two")
    theirs.close()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert receiver.data == b"one" and not receiver.ended and not stream.closed()
    stream.resume(receiver)
    assert receiver.data == b"one"
    await turns(lambda: receiver.ended)
    assert receiver.data == b"one two"
    stream.resume(receiver)  # (it is closed: nothing happens)


@pytest.mark.gen_test
async def test_the_end_is_told_once(pair):
    stream, theirs = pair
    receiver = stream.receiver = Receiver()
    theirs.close()
    assert not stream.read_segment()
    stream.close()
    stream.close()
    assert receiver.ended == [None]
    assert not stream.reading()


@pytest.mark.parametrize("segments", [0, 1, 3, MOST_SEGMENTS, 3 * MOST_SEGMENTS + 1])
@pytest.mark.gen_test
async def test_on_a_loop_that_tells_once_all_is_read_up_to_the_end(pair, segments):
    stream, theirs = pair
    stream.told_once = True
    receiver = stream.receiver = Receiver(bytearray(10 * segments + 10))
    receiver.receiving = lambda: memoryview(receiver.buffer)[receiver.counts :][:10]
    theirs.sendall(b"x" * 10 * segments)
    theirs.close()
    stream.read_from_fd(b"")  # (nobody tells of it again)
    await turns(lambda: receiver.ended)
    assert receiver.counts == 10 * segments


def test_which_loops_tell_once(io_loop):
    ours, theirs = socket.socketpair()
    stream = SegmentStream(ours)
    on_selectors = isinstance(io_loop.asyncio_loop, asyncio.SelectorEventLoop)
    assert stream.told_once is not on_selectors
    stream.close()
    theirs.close()


@pytest.mark.gen_test
async def test_small_pieces_leave_in_one_send(pair):
    stream, theirs = pair
    assert stream.send_pieces([b"a", b"b", b"c"], 3) is None
    assert theirs.recv(10) == b"abc"


@pytest.mark.parametrize(
    "sizes", [[5_000_000], [100, 3_000_000, 2, 50, 2_000_000, 2], [300] * 9000]
)
@pytest.mark.gen_test
async def test_what_the_socket_does_not_take_follows_in_order(pair, sizes):
    stream, theirs = pair
    stream.receiver = Receiver()
    pieces = [os.urandom(size) for size in sizes]
    rest = stream.send_pieces(pieces, sum(sizes))
    assert rest is not None
    assert stream.writing()
    theirs.setblocking(False)
    got = bytearray()

    def drain():
        while len(got) < sum(sizes):
            try:
                got.extend(theirs.recv(1 << 20))
            except BlockingIOError:
                return False
        return True

    await turns(drain)
    await rest
    assert bytes(got) == b"".join(pieces)
    assert stream.receiver.ended == []


@pytest.mark.gen_test
async def test_a_broken_pipe_closes(pair):
    stream, theirs = pair
    receiver = stream.receiver = Receiver()
    theirs.close()
    rest = stream.send_pieces([b"x"], 1)
    assert stream.writing() and receiver.ended == []
    await turns(lambda: receiver.ended)
    assert stream.closed() and isinstance(receiver.ended[0], BrokenPipeError)
    assert isinstance(rest.exception(), StreamClosedError)


#: What is sent at once, and what waits in part when the send fails.
SENDS = {"in one send": [b"x"], "the rest of a write": [b"x" * 8_000_000, b"y"]}


@pytest.mark.parametrize("segments", [1, 3, MOST_SEGMENTS + 2])
@pytest.mark.parametrize("sent", SENDS)
@pytest.mark.gen_test
async def test_what_came_before_a_send_that_fails_is_read_and_not_inside_it(pair, sent, segments):
    stream, theirs = pair
    receiver = stream.receiver = Receiver(bytearray(10 * segments + 10))
    receiver.receiving = lambda: memoryview(receiver.buffer)[receiver.counts :][:10]
    pieces = SENDS[sent]
    if sent != "in one send":
        stream.send_pieces(pieces, sum(map(len, pieces)))
    theirs.sendall(b"x" * 10 * segments)
    theirs.close()
    if sent == "in one send":
        stream.send_pieces(pieces, sum(map(len, pieces)))
    else:
        stream.write(b"more")
    assert receiver.counts == 0 and stream.writing()
    await turns(lambda: receiver.ended)
    assert receiver.counts == 10 * segments
    assert isinstance(receiver.ended[0], (BrokenPipeError, ConnectionResetError))
    assert len(receiver.ended) == 1


@pytest.mark.gen_test
async def test_a_stream_that_is_closed_after_a_send_that_failed_reads_no_more(pair):
    stream, theirs = pair
    receiver = stream.receiver = Receiver()
    theirs.sendall(b"unread")
    theirs.close()
    stream.send_pieces([b"x"], 1)
    stream.close()
    await asyncio.sleep(0.01)
    assert receiver.data == b"" and len(receiver.ended) == 1
