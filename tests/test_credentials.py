"""tornado_memcache.credentials: what is taken for a username and a password, and shown nowhere."""

from __future__ import annotations

import pickle

import pytest

from tornado_memcache import Client, InvalidRequest
from tornado_memcache.address import Server, parse_server
from tornado_memcache.credentials import LONGEST, Credentials, checked_credentials

SECRET = "xyzzy"

GOOD = [
    ("app", "secret", b"app secret"),
    (b"app", b"secret", b"app secret"),
    ("\u00e9", "\u20ac", "\u00e9 \u20ac".encode()),
    ("app", "a:b:c", b"app a:b:c"),
    ("u", "p" * (LONGEST - 2), b"u " + b"p" * (LONGEST - 2)),
]

BAD = [
    *[(None, SECRET, InvalidRequest, "password is given without username")],
    *[(SECRET, None, InvalidRequest, "username is given without password")],
    *[("", SECRET, InvalidRequest, "username is empty")],
    *[(SECRET, "", InvalidRequest, "password is empty")],
    *[(SECRET, b"", InvalidRequest, "password is empty")],
    *[
        (SECRET, SECRET + between + SECRET, InvalidRequest, "password contains white space or a")
        for between in (" ", "\r", "\n", "\r\n", "\0", "\t", "\x7f", "\x1f")
    ],
    *[(SECRET + " ", "p", InvalidRequest, "username contains white space or a control")],
    *[(b" " + SECRET.encode(), "p", InvalidRequest, "username contains white space")],
    *[(SECRET, SECRET + "\udc80", InvalidRequest, "password cannot be encoded as utf-8")],
    *[(SECRET + ":", SECRET, InvalidRequest, "username has a colon")],
    *[("u", SECRET * 51, InvalidRequest, "too long.*254 bytes")],
    *[(SECRET, 12345, TypeError, "password must be str or bytes, not int")],
    *[(SECRET, True, TypeError, "password must be str or bytes, not bool")],
    *[([SECRET], SECRET, TypeError, "username must be str or bytes, not list")],
    *[(SECRET, bytearray(b"p"), TypeError, "password must be str or bytes, not bytearray")],
]


@pytest.mark.parametrize(("username", "password", "block"), GOOD)
def test_both_are_said_in_one_block(username, password, block):
    assert checked_credentials(username, password).block() == block


def test_none_is_none():
    assert checked_credentials(None, None) is None


def all_that_is_said(error):
    """Returns the words of an error, and of all that it may be shown with."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.args))
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(("username", "password", "error", "told"), BAD)
def test_what_is_refused_is_named_and_not_shown(username, password, error, told):
    for make in (
        lambda: Client(["a:1"], username=username, password=password),
        lambda: Client([{"server": "a:1", "username": username, "password": password}]),
    ):
        with pytest.raises(error, match=told) as caught:
            make()
        assert not [text for text in all_that_is_said(caught.value) if SECRET in text]


def test_a_server_names_its_own_where_they_are_refused():
    with pytest.raises(InvalidRequest, match="^server a:1: password is empty"):
        Client(["b:1", {"server": "a:1", "username": "u", "password": ""}])


def test_they_are_in_no_repr():
    made = checked_credentials("name-" + SECRET, "pass-" + SECRET)
    server = parse_server({"server": "a:1", "username": "name-" + SECRET, "password": SECRET})
    client = Client([server], username="other-" + SECRET, password=SECRET)
    for one in (made, server, [server], {"a": made}, client, client.servers, client._cluster):
        for text in (repr(one), str(one), f"{one}"):
            assert SECRET not in text
    assert repr(made) == "Credentials()"


def test_equal_ones_are_equal():
    one, same = checked_credentials("u", "p"), Credentials(b"u", b"p")
    assert one == same and hash(one) == hash(same)
    assert one != checked_credentials("u", "q")
    server = Server("a", 1, credentials=one)
    assert pickle.loads(pickle.dumps(server)) == server
