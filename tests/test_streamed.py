"""tornado_memcache.streamed: each line of watch and metadump, and what it says."""

from __future__ import annotations

import pytest

from tornado_memcache import (
    AuthenticationError,
    ClientError,
    ConnectionFailed,
    InvalidRequest,
    ProtocolError,
    ServerError,
)
from tornado_memcache.streamed import MetadumpEntry, MetadumpLines, WatchLines, watch_request

S = "127.0.0.1:11211"


def watching() -> WatchLines:
    lines = WatchLines(S, watch_request(("fetchers",)))
    assert lines.accept(b"OK") is False and lines.answered
    return lines


def test_an_event_has_its_key_as_it_was_sent_and_all_fields_as_they_stand():
    line = b"ts=1795537889.692777 gid=3 type=item_get key=a%2520b%80%FF status=not_found clsid=0"
    lines = watching()
    assert lines.accept(line)
    event = lines.read(line)
    assert (event.server, event.kind, event.key) == (S, "item_get", b"a%20b\x80\xff")
    assert event.fields["key"] == "a%2520b%80%FF" and event.fields["ts"] == "1795537889.692777"
    assert event.skipped == 0
    with pytest.raises(TypeError):
        event.fields["ts"] = "now"  # type: ignore[index]


def test_an_event_may_be_about_no_key_and_end_in_words():
    line = b"ts=1.5 gid=4 type=proxy_user msg=hello there type=x"
    event = watching().read(line)
    assert event.key is None and event.kind == "proxy_user"
    assert event.fields["msg"] == "hello there type=x"


def test_lines_that_the_server_dropped_are_counted():
    lines = watching()
    assert lines.accept(b"skipped=750282")
    event = lines.read(b"skipped=750282")
    assert (event.kind, event.skipped, event.key) == ("skipped", 750282, None)


@pytest.mark.parametrize(
    "line", [b"skipped=", b"skipped=-1", b"skipped=1x", b"skipped=" + b"9" * 20]
)
def test_a_number_that_is_none_is_refused(line):
    with pytest.raises(ProtocolError, match="no number"):
        watching().read(line)


def test_an_event_without_a_type_is_refused():
    with pytest.raises(ProtocolError, match="has no type"):
        watching().read(b"ts=1.0 gid=1")


def test_an_entry_tells_all_of_an_item():
    line = b"key=user%3A42%3A%80 exp=1795537889 la=1795537880 cas=12 fetch=yes cls=3 size=74"
    lines = MetadumpLines(S)
    assert lines.accept(line) and lines.answered and not lines.ended
    expected = MetadumpEntry(S, b"user:42:\x80", 1795537889, 1795537880, 12, True, 3, 74)
    assert lines.read(line) == expected
    # (newer servers tell more)
    assert lines.read(line + b" flags=5") == expected
    assert lines.accept(b"END") is False and lines.ended


def test_an_entry_that_never_expires_has_no_exptime():
    line = b"key=k exp=-1 la=1 cas=2 fetch=no cls=1 size=64"
    assert MetadumpLines(S).read(line) == (S, b"k", None, 1, 2, False, 1, 64)


@pytest.mark.parametrize(
    "line",
    [
        b"key=",
        b"key=k",
        b"key=k exp=x la=1 cas=2 fetch=no cls=1 size=64",
        b"key=k exp=-2 la=1 cas=2 fetch=no cls=1 size=64",
        b"key=k exp=-1 la=1 cas=2 fetch=maybe cls=1 size=64",
        b"key=k exp=-1 la=1 cas=2 fetch=no cls=1 size=",
        b"key= exp=-1 la=1 cas=2 fetch=no cls=1 size=1",
        b"key=k exp=-1 la=1 cas=" + b"9" * 400 + b" fetch=no cls=1 size=1",
    ],
)
def test_an_entry_that_is_broken_is_refused(line):
    with pytest.raises(ProtocolError, match="tells not what it should") as caught:
        MetadumpLines(S).read(line)
    assert caught.value.server == S and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "line, kind, told",
    [
        (b"ERROR", ClientError, "does not know"),
        (b"CLIENT_ERROR lru crawler disabled", ClientError, "lru crawler disabled"),
        (b"SERVER_ERROR out of memory", ServerError, "out of memory"),
        (b"ERROR Too many open connections", ConnectionFailed, "limit of connections"),
        (b"CLIENT_ERROR unauthenticated", AuthenticationError, "username="),
        (b"VALUE k 0 1", ProtocolError, "begins with 'VALUE k 0 1'"),
        (b"", ProtocolError, "begins with ''"),
    ],
)
@pytest.mark.parametrize("kind_of_lines", ["watch", "metadump"])
def test_a_first_line_that_is_an_error_says_what_is_wrong(line, kind, told, kind_of_lines):
    lines = MetadumpLines(S) if kind_of_lines == "metadump" else WatchLines(S, b"watch\r\n")
    with pytest.raises(kind, match=told) as caught:
        lines.accept(line)
    assert type(caught.value) is kind and caught.value.server == S


@pytest.mark.parametrize("line", [b"OK", b"ERROR", b"END", b"BUSY", b"SERVER_ERROR x", b"what"])
def test_a_line_of_another_kind_in_the_middle_is_refused(line):
    with pytest.raises(ProtocolError):
        watching().accept(line)
    lines = MetadumpLines(S)
    lines.accept(b"key=k exp=-1 la=1 cas=2 fetch=no cls=1 size=64")
    if line != b"END":
        with pytest.raises(ProtocolError):
            lines.accept(line)


def test_a_server_may_be_busy_before_it_begins():
    lines = MetadumpLines(S)
    assert lines.accept(b"BUSY currently processing crawler request") is False
    assert lines.busy and not lines.answered
    assert lines.is_busy().server == S


def test_words_make_one_line():
    assert watch_request(()) == b"watch\r\n"
    assert watch_request(("fetchers", "proxy_x1")) == b"watch fetchers proxy_x1\r\n"


@pytest.mark.parametrize("word", ["", " ", "a b", "a\r\nflush_all", "a\n", "é", "a-b", "_", "a\0"])
def test_what_is_no_word_is_refused(word):
    with pytest.raises(InvalidRequest, match="no word to watch"):
        watch_request(("fetchers", word))


def test_words_are_str_and_fit_in_one_line():
    for wrong in (None, b"fetchers", 1, ["fetchers"]):
        with pytest.raises(TypeError, match="words to watch must be str"):
            watch_request((wrong,))
    with pytest.raises(InvalidRequest, match="too many"):
        watch_request(("fetchers",) * 200)
