"""tornado_memcache.errors: the tree that the module draws, and what the messages say."""

import asyncio
import re

import pytest

from tornado_memcache import errors
from tornado_memcache.errors import (
    ConnectionFailed,
    InvalidRequest,
    MemcacheError,
    ProtocolError,
    ServerDead,
    Timeout,
    shown,
)

EVERY = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MemcacheError)
]
NAMED = [kind for kind in EVERY if not kind.__name__.startswith("_")]


def test_the_tree_is_the_one_that_is_drawn():
    drawn, above = {}, []
    for indent, name in re.findall(r"^ {4}( *)([A-Z]\w+)", errors.__doc__, re.MULTILINE):
        depth = len(indent) // 2
        del above[depth:]
        drawn[name] = above[-1] if above else None
        above.append(name)
    found = {}
    for kind in NAMED:
        parents = [base.__name__ for base in kind.__mro__[1:] if base in NAMED]
        found[kind.__name__] = parents[0] if parents else None
    assert found == drawn


def test_what_each_is_besides():
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(ConnectionFailed, OSError)
    assert issubclass(Timeout, asyncio.TimeoutError)
    assert not issubclass(ConnectionFailed, asyncio.TimeoutError)


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_each_carries_its_server_and_whether_the_connection_survives(kind):
    error = kind("it happened", server="a:1")
    assert error.server == "a:1"
    assert error.message == "it happened"
    assert "it happened" in str(error)
    assert kind().server is None
    assert error.connection_survives is not issubclass(kind, (ProtocolError, ConnectionFailed))


@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_a_twin_is_equal_and_another_object(kind):
    error = kind("it happened", server="a:1")
    error.reached = (object(),)
    try:
        raise error
    except MemcacheError:
        twin = error.twin()
    assert type(twin) is kind and twin is not error
    assert (str(twin), twin.server, twin.args) == (str(error), error.server, error.args)
    assert twin.reached == ()
    assert twin.__traceback__ is None


def test_a_failed_connection_keeps_its_errno():
    error = ConnectionFailed("refused", errno=111, server="a:1", phase="connecting")
    for one in (error, error.twin(), error.of("get 'k'", False)):
        assert one.errno == 111
        assert one.phase == "connecting"
    assert ConnectionFailed("lost").errno is None


@pytest.mark.parametrize("kind", [ConnectionFailed, Timeout])
def test_an_unanswered_call_says_what_was_asked_where_it_stood_and_what_may_be(kind):
    error = kind("no answer", server="a:1", phase="reply")
    assert str(error) == "no answer (server a:1, phase reply)"
    assert str(kind("no answer")) == "no answer"
    one = error.of("set 'k'", True)
    assert one.maybe_applied and not error.maybe_applied
    assert str(one) == ("set 'k': no answer (server a:1, phase reply); it may have taken effect")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"k", "'k'"),
        ("k", "'k'"),
        (bytearray(b"k"), "'k'"),
        (memoryview(b"k"), "'k'"),
        (b"\x00\xff\r\n", r"'\x00\xff\r\n'"),
        ("\udc80", r"'\udc80'"),
        (None, "None"),
        ((1, "k"), "(1, 'k')"),
    ],
)
def test_how_a_key_is_shown(key, text):
    assert shown(key) == text


@pytest.mark.parametrize("key", [b"x" * 500_000, "x" * 500_000, b"\xff" * 500_000, (0,) * 99])
def test_a_long_key_is_cut_in_messages(key):
    text = shown(key)
    assert len(text) <= 64
    assert text.endswith("...")


def test_an_error_can_be_raised_and_caught_by_its_root():
    with pytest.raises(MemcacheError, match="dead"):
        raise ServerDead("dead")
