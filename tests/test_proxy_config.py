"""tornado_memcache.proxy_config: flags and files, right and wrong."""

import re
import ssl

import pytest

from tornado_memcache.errors import InvalidRequest
from tornado_memcache.protocol import Unauthenticated
from tornado_memcache.proxy_config import OF_POOL, OF_PROXY, in_flags
from tornado_memcache.tls import handshake_failure, loss

from .certificates import authority
from .proxied import config_of

WHOLE = """\
# A comment, and what it is for.
[proxy]
listen = 127.0.0.1:11400
admin: 127.0.0.1:11401
processes = 2
errors = yes
idle-timeout = 600
receive-timeout = 0

[pool main]
servers =
    127.0.0.1:11211
    127.0.0.1:11212,3
ring = ketama
on-dead = gutter
gutter = 127.0.0.1:11213
request-timeout = 0.25

[pool users]
prefix = user:
servers = [::1]:11211 unix:/run/memcached
auth-file = {auth}
tls-ca = {ca}
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "auth").write_text("me:secret-word\n")
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return {"auth": tmp_path / "auth", "ca": tmp_path / "ca.pem"}


def test_a_file_with_everything(tmp_path, files):
    path = tmp_path / "proxy.ini"
    path.write_text(WHOLE.replace("unix:/run/memcached", "").format(**files))
    config = config_of(f"--config={path}")
    assert config.listen == ("127.0.0.1", 11400) and config.proxy["admin"] == ("127.0.0.1", 11401)
    assert config.proxy["processes"] == 2 and config.proxy["errors"] is True
    assert config.limits[1:] == (None, 60.0, 600.0)
    assert config.pools[b""] == {
        "servers": ["127.0.0.1:11211", ("127.0.0.1:11212", 3)],
        "ring": "ketama",
        "on_dead": "gutter",
        "gutter": ["127.0.0.1:11213"],
        "request_timeout": 0.25,
    }
    users = config.pools[b"user:"]
    assert users["username"] == "me" and users["password"] == "secret-word"
    assert users["ssl"].check_hostname


def test_flags_with_everything(files):
    config = config_of(
        "--listen=unix:/run/proxy",
        "--server=a:1",
        "--server=b:2,5",
        "--route=user:=c:3",
        "--route=user:=d:4",
        "--route=a=b=e:5",
        "--max-connections=2",
        "--allow-all-commands",
        f"--auth-file={files['auth']}",
    )
    assert config.listen == "/run/proxy" and config.proxy["allow-all-commands"] is True
    shared = {"max_connections": 2, "username": "me", "password": "secret-word"}
    assert config.pools == {
        b"": {"servers": ["a:1", ("b:2", 5)], **shared},
        b"user:": {"servers": ["c:3", "d:4"], **shared},
        b"a=b": {"servers": ["e:5"], **shared},
    }


@pytest.mark.parametrize(
    "flags, told",
    [
        ([], "--server is missing"),
        (["--server=h:x"], "--server: server 'h:...'.* port must be from 1 to 65535"),
        (["--server=h,x"], "--server: the weight must be a whole number, not 'x'"),
        (["--server=h", "--server=h"], "--server: server h:11211 is listed twice"),
        (["--server=h", "--server=h"], r"listed twice; use a weight: h:11211,2$"),
        (["--server=h", "--ring=x"], r"--ring: ring 'x' is not one of [a-z_, ]+$"),
        (["--server=h", "--listen=h"], "--listen must be host:port or unix:/path, not 'h'"),
        (["--server=h", "--listen=127.0.0.1:x"], "--listen: the port must be a whole number"),
        (["--server=h", "--listen=127.0.0.1:99999"], "--listen: the port must be from 0 to 65535"),
        (["--server=h", "--listen=0.0.0.0:1"], "--listen '0.0.0.0' can be reached from other"),
        (["--server=h", "--admin=0.0.0.0:1", "--allow-public"], "--admin '0.0.0.0' can be reached"),
        (["--server=h", "--admin=unix:/x"], "--admin must be host:port"),
        (["--server=h", "--processes=0"], "--processes must be from 1 to 256"),
        (["--server=h", "--idle-timeout=-1"], "--idle-timeout must be a finite number of seconds"),
        (["--server=h", "--request-timeout=soon"], "--request-timeout must be a number of seconds"),
        (["--server=h", "--ring=x"], "--ring: ring 'x'"),
        (["--server=h", "--on-dead=x"], "--on-dead: on_dead 'x' is not one of"),
        (["--server=h", "--on-dead=gutter"], "--on-dead: gutter= and on_dead="),
        (["--server=h", "--gutter=h"], "--gutter|--server"),
        (["--server=h", "--gutter-exptime=9"], "--gutter-exptime: gutter_exptime is given without"),
        (["--server=h", "--auth-file=/nowhere"], "--auth-file: '/nowhere' cannot be read: No such"),
        (["--server=h", "--tls-ca=/nowhere"], "--tls-ca: '/nowhere' cannot be used"),
        (["--server=h", "--route=x"], "--route 'x' must be PREFIX=SERVER"),
        (["--server=h", "--route=a b=h"], "--route: key 'a b' contains white space"),
        (["--server=h", "--request-timeout="], "--request-timeout must be a number of seconds"),
        (["--server=h", "--listen="], "--listen is empty"),
        (["--server="], "--server names no server"),
        (["--server=h", "--config=x"], "--server and --config: a file is in place of all flags"),
        (["--config=/nowhere"], "/nowhere: cannot be read: No such file"),
    ],
)
def test_wrong_flags_are_told_by_name(flags, told):
    with pytest.raises(InvalidRequest, match=told):
        config_of(*flags)


POOL = "[pool a]\nservers = h\n"


@pytest.mark.parametrize(
    "text, told",
    [
        ("", ": has no [pool NAME]"),
        ("listen = x\n", ":1: the line stands before any section"),
        ("[proxy]\nnonsense\n" + POOL, ":2: the line is no setting"),
        ("[proxy]\n" + POOL + POOL, ":4: [pool a] stands there for the second time"),
        (POOL + "ring = modulo\nring = ketama\n", ":4: ring stands there for the second time"),
        ("[nonsense]\n" + POOL, ":1: [nonsense] is neither [proxy] nor [pool NAME]"),
        (POOL + "\n[proxy]\n# more\nport = 1\n", ":6: port is no setting of [proxy]"),
        (POOL + "timeout = 1\n", ":3: timeout is no setting of [pool a]"),
        ("[pool a]\nring = modulo\n", ":1: [pool a] has no servers"),
        (POOL + "prefix = a\n", ": a [pool NAME] without prefix is missing"),
        (POOL + POOL.replace("a]", "b]"), ":4: servers: a pool with no prefix is there already"),
        (POOL + "request-timeout = never\n", ":3: request-timeout must be a number of seconds"),
        (POOL + "max-value-size : 0\n", ":3: max-value-size must be from 1 to"),
        (POOL + "on-dead = what?\n", ":3: on-dead: on_dead 'what?' is not one of"),
        (POOL.replace("h", "h:0"), ":2: servers: server 'h:0': the port must be from 1 to 65535"),
        (POOL + "[proxy]\nerrors = maybe\n", ":4: errors must be yes or no, not 'maybe'"),
        (
            POOL + "[proxy]\nlisten = 0.0.0.0:1\n",
            ":4: listen '0.0.0.0' can be reached from other machines: say allow-public = yes",
        ),
        (
            POOL + "[proxy]\nallow-public = yes\nadmin = 0.0.0.0:1\n",
            ":5: admin '0.0.0.0' can be reached from other machines: the page is for this one",
        ),
        (POOL + "[proxy]\nlisten = unix:\n", ":4: listen: the path must be of 1 to 107 bytes"),
        ("[pool a]\nservers = h, i\n", ":2: servers: the weight must be a whole number"),
        ("  [proxy]\n  port = 1\n" + POOL, ":2: port is no setting of [proxy]"),
        ("[pool a]\n  servers =\n    h\n  # more\n\n  ring = x\n", ":6: ring: ring 'x'"),
        ("[pool a]\nservers =\n    h\n    ring = x\nring = x\n", ":5: ring: ring 'x'"),
    ],
)
def test_a_wrong_file_is_told_by_line(tmp_path, text, told):
    path = tmp_path / "proxy.ini"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=re.escape(f"{path}{told}")) as caught:
        config_of(f"--config={path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["secret-word", "me:", ":secret-word", "me:secret-word\nmore"])
def test_a_password_is_in_no_message(tmp_path, text):
    path = tmp_path / "auth"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="must hold one line, username:password") as caught:
        config_of("--server=h", f"--auth-file={path}")
    assert "secret-word" not in str(caught.value)


def test_a_file_may_be_indented(tmp_path):
    path = tmp_path / "proxy.ini"
    text = "[proxy]\n  listen = 127.0.0.1:1\n\n[pool a]\n\tservers =\n\t\th\n\tring = ketama\n"
    path.write_text(text)
    config = config_of(f"--config={path}")
    assert config.listen == ("127.0.0.1", 1)
    assert config.pools[b""] == {"servers": ["h"], "ring": "ketama"}


def test_every_setting_says_what_it_does():
    for setting in {**OF_PROXY, **OF_POOL}.values():
        assert setting.does


def test_what_a_client_advises_is_told_in_the_names_of_settings():
    told = in_flags(str(Unauthenticated()))
    assert told == "the server demands authentication: give auth-file"
    refused = ssl.SSLCertVerificationError(1, "refused")
    refused.verify_code, refused.verify_message = 20, "unable to get local issuer certificate"
    told = in_flags(handshake_failure(refused)[0])
    assert told.endswith("(trust an authority of your own with tls-ca)")
    told = in_flags(str(loss(None, ConnectionResetError(), "h", False)))
    assert "(does it speak TLS? tls-ca)" in told
    assert in_flags("SERVER_ERROR out of memory") == "SERVER_ERROR out of memory"
