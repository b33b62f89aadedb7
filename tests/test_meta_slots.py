"""tornado_memcache.meta_slots: beyond the corpus, which has all forms of replies."""

from __future__ import annotations

import pytest

from tornado_memcache.errors import (
    ClientError,
    ItemTooLarge,
    MetaUnsupported,
    ProtocolError,
    ServerError,
)
from tornado_memcache.meta_slots import MetaSlot
from tornado_memcache.protocol import STREAMED_BLOCK, OwedReplies, Reply

from .test_protocol import LIMIT, receive, slot

FLAGS = {b"mg": b"v", b"ms": b"T5", b"md": b"", b"ma": b"v"}


@pytest.mark.parametrize(
    ("verb", "argument", "writes", "idempotent"),
    [
        (b"mg", b"v f c t", False, True), (b"mg", b"v N30", True, False),
        (b"mg", b"T5", True, False), (b"mg", b"R5 v", True, False),
        (b"ms", b"", True, False), (b"md", b"", True, False), (b"ma", b"", True, False),
        (b"me", b"", False, True),
    ],
)  # fmt: skip
def test_what_writes_and_what_may_be_asked_again(verb, argument, writes, idempotent):
    one = slot(verb, b"a", argument=argument)
    assert type(one) is MetaSlot
    assert (one.writes, one.idempotent) == (writes, idempotent)


@pytest.mark.parametrize("length", [STREAMED_BLOCK, STREAMED_BLOCK + 1, 100_000, LIMIT])
@pytest.mark.parametrize("behind", [b"VERSION 1\r\n", b"VERSI"])
def test_a_large_value_in_segments_with_the_next_reply_behind_it(length, behind):
    data = (b"\r\nEN\r\nHD" * (length // 8 + 1))[:length]
    reply = b"VA %d f0 ka\r\n%b\r\n" % (length, data)
    for cut in (5, reply.index(b"\r\n") + 2, 20_000, len(reply) - 2, len(reply) - 1, len(reply)):
        owed = OwedReplies(LIMIT)
        one, after = slot(b"mg", b"a", argument=b"v f k"), slot(b"version")
        owed.owed.extend([one, after])
        rest = reply[cut:] + behind
        finished = receive(owed, reply[:cut])
        for piece in (rest[:3], rest[3:70_000], rest[70_000:]):
            finished += receive(owed, piece)
        assert finished == ([one, after] if behind.endswith(b"\n") else [one])
        assert one.reply == Reply(b"VA", text=b"f0 ka", value=data)
        assert owed.failure is None


def test_nothing_is_allocated_for_a_value_over_the_limit():
    owed = OwedReplies(LIMIT)
    owed.owed.append(slot(b"mg", b"a", argument=b"v"))
    owed.receive_data(b"VA 1099511627776\r\n")
    assert isinstance(owed.failure, ProtocolError) and "max_value_size" in str(owed.failure)
    assert owed.block is None


@pytest.mark.parametrize(
    ("verb", "line", "kind", "keeps"),
    [
        *((verb, b"SERVER_ERROR out of memory", ServerError, True) for verb in FLAGS),
        (b"ms", b"SERVER_ERROR object too large for cache", ItemTooLarge, True),
        *((verb, b"ERROR", ClientError, verb != b"ms") for verb in FLAGS),
        *((verb, b"CLIENT_ERROR bad command line format", ClientError, verb != b"ms")
          for verb in FLAGS),
        (b"ms", b"CLIENT_ERROR bad data chunk", ClientError, False),
        (b"ms", b"CLIENT_ERROR opaque token too long", ClientError, True),
        *((verb, b"CLIENT_ERROR invalid flag", MetaUnsupported, True) for verb in FLAGS),
        (b"md", b"CLIENT_ERROR invalid or duplicate flag", MetaUnsupported, True),
    ],
)  # fmt: skip
def test_which_error_lines_a_connection_survives(verb, line, kind, keeps):
    owed = OwedReplies(LIMIT)
    one = slot(verb, b"a", argument=FLAGS[verb])
    owed.owed.append(one)
    assert receive(owed, line + b"\r\n") == [one]
    assert type(one.reply) is kind
    assert (owed.failure is None) is keeps


def test_a_flag_that_the_server_does_not_know_yet_is_told_with_the_flags():
    owed = OwedReplies(LIMIT)
    one = slot(b"md", b"a", argument=b"I E5")
    owed.owed.append(one)
    receive(owed, b"CLIENT_ERROR invalid or duplicate flag\r\n")
    assert "older than one of the flags I: invalidate, E5: explicit cas unique" in str(one.reply)
