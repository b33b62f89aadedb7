"""tornado_memcache.logins: the file of users, and what is said at the door, without a socket."""

import subprocess
import time

import pytest

from tornado_memcache.errors import InvalidRequest
from tornado_memcache.logins import LoginReader, Logins, parse_logins
from tornado_memcache.protocol import Request
from tornado_memcache.text_server import Settled

from .memcacheds import free_port
from .oracle import asking

USERS = b"alice:secret\nbob:x:y\n"
WELCOME, REFUSED = Settled(b"STORED"), Settled(b"CLIENT_ERROR authentication failure")
OUTSIDE = Settled(b"CLIENT_ERROR unauthenticated")
CLOSE = Settled(closes=True)
VERSION = Request(b"version")


def said(block, rest=b""):
    return b"set any 0 0 %d\r\n%b\r\n%b" % (len(block), block, rest)


def reader():
    return LoginReader(lambda key, flags, length: False, parse_logins(USERS))


@pytest.mark.parametrize(
    "data, asked",
    [
        (said(b"alice secret", b"version\r\n"), [WELCOME, VERSION]),
        (said(b"bob x:y", b"version\r\nversion\r\n"), [WELCOME, VERSION, VERSION]),
        (said(b" alice  secret  more"), [WELCOME]),
        (b" set  a x y 12 noreply\r\nalice secret\r\n", [WELCOME]),
        (said(b"alice wrong") + said(b"alice secret"), [REFUSED, WELCOME]),
        (said(b"nobody secret"), [REFUSED]),
        (said(b"alice x:y"), [REFUSED]),
        (said(b"alice"), [Settled(b"CLIENT_ERROR bad authentication token format")]),
        (
            b"set a 0 0 3\r\nalice\r\n",
            [Settled(b"CLIENT_ERROR bad command line termination"), OUTSIDE],
        ),
        (b"version\r\n", [OUTSIDE]),
        (b"quit\r\n", [OUTSIDE]),
        (b"set a 0 0 x\r\n", [OUTSIDE]),
        (b"set a 0 0\r\n", [OUTSIDE]),
        (b"set a 0 0 -1\r\n", [OUTSIDE]),
        (b"add a 0 0 12\r\n", [OUTSIDE]),
        (b"x" * 2049, [CLOSE]),
        (b"set a 0 0 5000\r\n", [CLOSE]),
    ],
)
def test_what_is_said_at_the_door(data, asked):
    one = reader()
    assert one.receive_data(data) == asked
    assert one.closed is (CLOSE in asked)
    assert not one.closed or one.receive_data(said(b"alice secret")) == []
    one = reader()
    assert [x for i in range(len(data)) for x in one.receive_data(data[i : i + 1])] == asked


@pytest.mark.parametrize("data", [said(b"alice secret"), said(b"alice wrong"), said(b"alice"),
                                  b"version\r\n", b"set a 0 0 x\r\n"])  # fmt: skip
def test_memcached_says_the_same(data, tmp_path, memcached_binary):
    """(It answers only the last of several that come in one segment, so one at a time.)"""
    file = tmp_path / "users"
    file.write_bytes(USERS)
    port = free_port()
    line = [memcached_binary, "-l", "127.0.0.1", "-p", str(port), "-u", "root", "-Y", str(file)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answer = None
        while answer is None and process.poll() is None:
            try:
                answer = asking(f"127.0.0.1:{port}")(data)
            except ConnectionRefusedError:
                time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert b"".join(one.line + b"\r\n" for one in reader().receive_data(data)) == answer


def test_a_client_is_half_way_until_it_is_in():
    one = reader()
    assert one.half_way
    one.receive_data(said(b"alice secret"))
    assert not one.half_way
    one.receive_data(b"vers")
    assert one.half_way


def test_what_is_kept_of_somebody_outside_is_bounded():
    one = reader()
    for _ in range(3000):
        one.receive_data(b"no words of the protocol\r\n" * 100)
        assert len(one._said) == 0
    while not one.closed:
        one.receive_data(b"x" * 1000)
        assert len(one._said) <= 3048
    one.receive_data(b"x" * 1_000_000)
    assert len(one._said) == 0


def test_who_asked_and_who_was_refused_is_counted():
    logins = Logins({"alice": "secret"})
    one = LoginReader(lambda key, flags, length: False, logins)
    one.receive_data(said(b"alice no") + said(b"alice secret"))
    assert (logins.asked, logins.refused) == (2, 1)
    assert repr(logins) == "<Logins of 1 users>"


@pytest.mark.parametrize(
    "text, told",
    [
        (b"", "at least one"),
        (b"\n\n", "at least one"),
        (b"alice:secret\nbob\n", "line 2 must be username:password"),
        (b":secret", "line 1: username is empty"),
        (b"alice:", "line 1: password is empty"),
        (b"alice:s p", "line 1: password contains white space"),
        (b"alice:secret\nalice:other", "line 2: the username stands there twice"),
        (b"alice:" + b"s" * 300, "line 1: username and password are too long"),
    ],
)
def test_a_bad_file_is_told_by_its_line_and_shows_no_word_of_it(text, told):
    with pytest.raises(InvalidRequest, match=told) as raised:
        parse_logins(text)
    assert "secret" not in str(raised.value) and "alice" not in str(raised.value)


@pytest.mark.parametrize("users", [["alice"], "alice:secret", 5])
def test_users_are_a_dict(users):
    with pytest.raises(TypeError, match="users must be a dict"):
        Logins(users)


def test_blank_lines_and_crlf_are_no_fault():
    logins = parse_logins(b"\r\nalice:secret\r\n\r\n")
    assert logins.let_in(b"alice", b"secret") and not logins.let_in(b"alice", b"secret\r")
