"""The slots of the text dialect, beyond the table of replies in test_protocol."""

import pytest

from tornado_memcache.errors import ClientError, ProtocolError
from tornado_memcache.protocol import (
    TOO_MANY_CONNECTIONS,
    UNAUTHENTICATED,
    ConnectionRefused,
    OwedReplies,
    Reply,
)
from tornado_memcache.text import MAX_STATS

from .test_protocol import LIMIT, receive, slot


def test_more_stats_than_any_server_has():
    owed = OwedReplies(LIMIT)
    owed.owed.append(slot(b"stats"))
    for number in range(0, MAX_STATS + 200, 100):
        owed.receive_data(b"".join(b"STAT n%d 0\r\n" % (number + one) for one in range(100)))
    assert isinstance(owed.failure, ProtocolError)


def test_stats_lines_with_one_name_do_not_go_on_for_ever():
    owed = OwedReplies(LIMIT)
    owed.owed.append(slot(b"stats"))
    for _ in range((MAX_STATS + 200) // 100):
        owed.receive_data(b"STAT same 0\r\n" * 100)
    assert isinstance(owed.failure, ProtocolError)


@pytest.mark.parametrize(
    "line", [TOO_MANY_CONNECTIONS, *UNAUTHENTICATED], ids=lambda line: line.decode()
)
@pytest.mark.parametrize("verb, keeps", [(b"incr", True), (b"get", True), (b"set", False)])
@pytest.mark.parametrize("apart", [True, False])
def test_behind_a_reply_no_line_refuses_the_connection(line, verb, keeps, apart):
    """A proxy passes on what one of its servers says."""
    owed = OwedReplies(LIMIT)
    before, made, after = slot(b"incr", b"a"), slot(verb, b"b"), slot(b"incr", b"c")
    owed.owed.extend([before, made, after])
    pieces = [b"1\r\n", line + b"\r\n2\r\n"]
    for piece in pieces if apart else [b"".join(pieces)]:
        receive(owed, piece)
    assert type(made.reply) is ClientError
    assert (owed.failure is None) is keeps and not isinstance(owed.failure, ConnectionRefused)
    assert (after.reply == Reply(b"NUMBER", number=2)) is keeps
