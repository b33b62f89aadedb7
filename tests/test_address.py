"""tornado_memcache.address: what a server specification means, and which are refused."""

import pytest

from tornado_memcache import Client
from tornado_memcache.address import Server, parse_server, parse_servers
from tornado_memcache.errors import InvalidRequest, InvalidServer

GOOD = [
    ("localhost", Server("localhost", 11211), "localhost:11211"),
    ("cache.example.org:1", Server("cache.example.org", 1), "cache.example.org:1"),
    ("10.0.0.1:65535", Server("10.0.0.1", 65535), "10.0.0.1:65535"),
    ("[::1]", Server("::1", 11211), "[::1]:11211"),
    ("[fe80::1%eth0]:11212", Server("fe80::1%eth0", 11212), "[fe80::1%eth0]:11212"),
    ("unix:/run/memcached.sock", Server("", 0, "/run/memcached.sock"), "unix:/run/memcached.sock"),
    ("unix:" + "p" * 107, Server("", 0, "p" * 107), "unix:" + "p" * 107),
    (("a:2", 3), Server("a", 2, weight=3), "a:2"),
    (("[::1]:2", 65536), Server("::1", 2, weight=65536), "[::1]:2"),
    (("unix:/s", 1), Server("", 0, "/s"), "unix:/s"),
]

#: What is refused: (specification, error, what the message says).
BAD = [
    ("", InvalidServer, "no host"),
    (":11211", InvalidServer, "no host"),
    ("h:abc", InvalidServer, "port"),
    ("h:", InvalidServer, "port"),
    ("h:0", InvalidServer, "port"),
    ("h:65536", InvalidServer, "port"),
    ("h:-1", InvalidServer, "port"),
    ("h:+1", InvalidServer, "port"),
    ("h: 1", InvalidServer, "port"),
    ("h:1 ", InvalidServer, "port"),
    ("h:1.0", InvalidServer, "port"),
    ("h:0x50", InvalidServer, "port"),
    ("h:1_1", InvalidServer, "port"),
    ("h:\uff11", InvalidServer, "port"),
    ("h:\u0661", InvalidServer, "port"),
    ("h:" + "1" * 5000, InvalidServer, "port"),
    ("a b:1", InvalidServer, "one host:port"),
    ("a\n:1", InvalidServer, "one host:port"),
    ("a\0:1", InvalidServer, "no host"),
    ("tcp://a", InvalidServer, "port"),
    ("a/b", InvalidServer, "no host"),
    ("/run/memcached.sock", InvalidServer, "write unix:"),
    ("user@h", InvalidServer, "'...@h' names no host"),
    ("memcached://user:secret@h:1", InvalidServer, "'...@h' is a URL"),
    ("tcp://a:1", InvalidServer, "'tcp://...' is a URL"),
    ("::1", InvalidServer, "brackets"),
    ("::1:11211", InvalidServer, "brackets"),
    ("[::1", InvalidServer, r"\[v6 address\]:port"),
    ("[::1]11211", InvalidServer, r"\[v6 address\]:port"),
    ("[::1]:", InvalidServer, "port"),
    ("[::1]:0", InvalidServer, "port"),
    ("[]:1", InvalidServer, r"\[v6 address\]:port"),
    ("[a]:1", InvalidServer, r"\[v6 address\]:port"),
    ("unix:", InvalidServer, "no path"),
    ("unix:/a\0b", InvalidServer, "no path"),
    ("unix:" + "p" * 108, InvalidServer, "107 bytes"),
    ("unix:" + "\u00e9" * 54, InvalidServer, "107 bytes"),
    ("foo..bar:11211", InvalidServer, "'foo..bar:11211' names no host: a label"),
    (".foo", InvalidServer, "'.foo' names no host: a label"),
    (".:11211", InvalidServer, "'.:11211' names no host: a label"),
    ("a" * 64 + ".example:11211", InvalidServer, "aaa.*names no host: a label"),
    ("\u00e9" * 64, InvalidServer, "names no host: a label"),
    (Server("foo..bar", 11211), InvalidServer, "'foo..bar:11211' names no host: a label"),
    (("h", 0), InvalidRequest, "weight"),
    (("h", -1), InvalidRequest, "weight"),
    (("h", 65537), InvalidRequest, "weight"),
    (("h", 1.5), TypeError, "weight"),
    (("h", "1"), TypeError, "weight"),
    (("h", True), TypeError, "weight"),
    (("h", None), TypeError, "weight"),
    (("h",), InvalidServer, r"\(server, weight\)"),
    (("h", 1, 1), InvalidServer, r"\(server, weight\)"),
    ((), InvalidServer, r"\(server, weight\)"),
    (("h:0", 1), InvalidServer, "port"),
    (b"h:1", TypeError, "server"),
    (None, TypeError, "server"),
    (11211, TypeError, "server"),
    (["h", 1], TypeError, "server"),
    # A Server that was made by hand is no better than its parts.
    (Server("h", 0), InvalidRequest, "port"),
    (Server("h", 65536), InvalidRequest, "port"),
    (Server("", 11211), InvalidRequest, "host"),
    (Server("user@h", 11211), InvalidRequest, "'...@h' names no host"),
    (Server("", 0, "/a@b\0"), InvalidRequest, "'unix:/a@b.*no path"),
    (Server("h", 11211, weight=0), InvalidRequest, "weight"),
    (Server("h", 11211, weight=1.5), TypeError, "weight"),
    (Server("", 0, "p" * 108), InvalidRequest, "107 bytes"),
]


#: What holds a password where none may stand: (specification, how it is shown).
TOLD_TOO_MUCH = [
    ("app:SECRET@h:11211", "'...@h'"),
    ("app:SEC@RET@h", "'...@h'"),
    ("app@h:SECRET", "'...@h'"),
    ("tcp://app:SECRET@h:11211/", "'...@h'"),
    ("tcp://h:11211?password=SECRET", "'tcp://...'"),
    ("h:11211:app:SECRET", "'h:...'"),
    ("app:SECRET:h:11211", "'...'"),
    ("SECRET:app:h", "'...'"),
    ("h:11211 app SECRET", "'h:...'"),
    ("app SECRET h:11211", "'...'"),
    ("h:11211,app,SECRET", "'h:...'"),
    ("[::1]:11211:app:SECRET", "'...'"),
    ("[::1] app SECRET", "'...'"),
    ("[::1 SECRET]:1", "'[:...'"),
    ("::1:app:SECRET", "':...'"),
]


@pytest.mark.parametrize(("spec", "told"), TOLD_TOO_MUCH)
def test_a_password_in_a_server_is_not_shown_and_is_told_where_it_belongs(spec, told):
    for servers in ([spec], [("a:1", 2), (spec, 1)], [{"server": spec}]):
        with pytest.raises(InvalidServer) as caught:
            Client(servers)
        message = str(caught.value)
        assert f"server {told}" in message and "SECRET" not in message and "RET" not in message
        assert 'credentials belong in a dict {"server": "host:port", "username": ' in message
        assert "brackets" not in message


@pytest.mark.parametrize(
    "spec", ["h:SECRET", "h:1SECRET", {"server": "h", "app:SECRET": 1}, {"h SECRET": "h"}]
)
def test_nothing_but_the_host_of_a_server_is_shown(spec):
    with pytest.raises(InvalidServer) as caught:
        Client([spec])
    assert "SECRET" not in str(caught.value)


def test_a_message_about_a_weight_names_the_server():
    for spec in (("h:1", 0), {"server": "h:1", "weight": 0}, Server("h", 1, weight=0)):
        with pytest.raises(InvalidRequest, match="server 'h:1': weight must be"):
            Client(["good:1", spec])


def test_a_set_has_no_order():
    for servers in ({"a:1", "b:1"}, frozenset(["a:1"])):
        with pytest.raises(TypeError, match="servers must be a list: a set"):
            Client(servers)
        with pytest.raises(TypeError, match="gutter must be a list: a set"):
            Client(["c:1"], on_dead="gutter", gutter=servers)


def named(case):
    return repr(case)[:40] if isinstance(case, (str, bytes, tuple)) else None


@pytest.mark.parametrize(("spec", "server", "name"), GOOD, ids=named)
def test_what_a_specification_means(spec, server, name):
    assert parse_server(spec) == server
    assert parse_server(spec).name == name
    assert parse_server(server) == server
    # A name is a specification again.
    assert parse_server(name)[:3] == server[:3]


@pytest.mark.parametrize(("spec", "error", "told"), BAD, ids=named)
def test_what_is_refused_at_construction(spec, error, told):
    for servers in ([spec], ["good:1", spec]):
        with pytest.raises(error, match=told) as caught:
            Client(servers)
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("servers", "error", "told"),
    [
        ([], InvalidServer, "at least one"),
        ((), InvalidServer, "at least one"),
        ("127.0.0.1:11211", TypeError, "list"),
        (b"127.0.0.1:11211", TypeError, "list"),
        (None, TypeError, "list"),
        (11211, TypeError, "list"),
        (["a", "a"], InvalidServer, "twice"),
        (["a", "a:11211"], InvalidServer, "twice"),
        (["a:1", "b:1", ("a:1", 2)], InvalidServer, "twice"),
        (["unix:/s", "unix:/s"], InvalidServer, "twice"),
        (["[::1]", "[::1]:11211"], InvalidServer, "twice"),
    ],
    ids=named,
)
def test_lists_that_are_refused(servers, error, told):
    with pytest.raises(error, match=told):
        Client(servers)


def test_lists_of_all_kinds():
    names = ["a:1", "b:2"]
    for servers in (names, tuple(names), iter(names), dict.fromkeys(names)):
        assert [server.name for server in parse_servers(servers)] == names
