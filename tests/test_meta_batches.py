"""tornado_memcache.meta_batches: quiet batches, and what an error line within one leaves known."""

from __future__ import annotations

from tornado_memcache.errors import ClientError, MetaUnsupported, ProtocolError, ServerError
from tornado_memcache.meta_batches import BatchReply, BatchSlot
from tornado_memcache.protocol import OwedReplies, Reply

from .test_protocol import LIMIT, receive, slot

KEYS = tuple(b"abcdef"[at : at + 1] for at in range(6))


def answered(stream, verb=b"mg", argument=b"q v"):
    owed = OwedReplies(LIMIT)
    one = slot(verb, *KEYS, argument=argument)
    assert type(one) is BatchSlot
    owed.owed.append(one)
    assert receive(owed, stream) == [one] and owed.failure is None
    assert type(one.reply) is BatchReply
    return one.reply


def test_a_batch_is_its_lines_and_what_closes_it():
    one = slot(b"mg", b"a", b"b", argument=b"q v")
    assert one.encode() == [b"mg a q v O0\r\nmg b q v O1\r\nmn\r\n"]
    one = slot(b"md", b"a b", argument=b"q b")
    assert one.encode() == [b"md YSBi q b O0\r\nmn\r\n"]


def test_what_is_not_answered_was_the_usual():
    reply = answered(b"VA 1 O1\r\nx\r\nVA 0 O4 W\r\n\r\nMN\r\n")
    assert reply.replies == {
        b"b": Reply(b"VA", text=b"O1", value=b"x"),
        b"e": Reply(b"VA", text=b"O4 W"),
    }
    assert (reply.unknown, reply.error) == (frozenset(), None)


def test_an_error_leaves_unknown_what_stands_between_the_replies_around_it():
    stream = b"VA 1 O1\r\nx\r\nSERVER_ERROR busy\r\nVA 1 O4\r\ny\r\nMN\r\n"
    reply = answered(stream)
    assert set(reply.replies) == {b"b", b"e"} and type(reply.error) is ServerError
    assert reply.unknown == {b"c", b"d"}
    assert answered(b"SERVER_ERROR busy\r\n" + b"MN\r\n").unknown == set(KEYS)
    reply = answered(b"ERROR\r\nNF O2\r\nCLIENT_ERROR x\r\nMN\r\n", b"md", b"q")
    assert type(reply.error) is ClientError and reply.unknown == set(KEYS) - {b"c"}
    assert type(answered(b"CLIENT_ERROR invalid flag\r\nMN\r\n").error) is MetaUnsupported


def test_a_batch_that_was_answered_in_part_is_not_asked_again():
    owed = OwedReplies(LIMIT)
    one = slot(b"mg", *KEYS, argument=b"q v")
    owed.owed.append(one)
    assert one.idempotent and not one.begun()
    receive(owed, b"VA 1 O1\r\nx\r\n")
    assert one.begun()


def test_more_errors_than_were_asked_for_end_the_connection():
    owed = OwedReplies(LIMIT)
    owed.owed.append(slot(b"mg", *KEYS, argument=b"q v"))
    receive(owed, b"ERROR\r\n" * 6)
    assert owed.failure is None
    receive(owed, b"ERROR\r\n")
    assert isinstance(owed.failure, ProtocolError)


def test_a_large_value_within_a_batch():
    data = b"x" * 100_000
    stream = b"VA 100000 O0\r\n%b\r\nVA 1 O5\r\ny\r\nMN\r\n" % data
    reply = answered(stream)
    assert reply.replies[b"a"].value == data and reply.replies[b"f"].value == b"y"
