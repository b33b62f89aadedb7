"""tornado_memcache.bounds: limits of clients, read from text."""

import pytest

from tornado_memcache import InvalidRequest
from tornado_memcache.bounds import OF_CLIENT, limits_of, seconds, seconds_or_never, whole
from tornado_memcache.guest import Limits


def test_what_holds_where_nothing_is_said():
    defaults = {name: setting.default for name, setting in OF_CLIENT.items()}
    assert limits_of(defaults) == Limits(16 << 20, 30.0, 60.0, None)


def test_limits_are_found_among_other_settings():
    texts = {
        "max-client-bytes": "4096", "receive-timeout": "1.5", "write-timeout": "0",
        "idle-timeout": "9",
    }  # fmt: skip
    read = {name: OF_CLIENT[name].read(name, text) for name, text in texts.items()}
    assert limits_of({"listen": "x", **read}) == Limits(4096, 1.5, None, 9.0)


@pytest.mark.parametrize(
    "read, text, told",
    [
        (whole(1), "0", "--x must be from 1 to"),
        (whole(1), "-1", "--x must be a whole number, not '-1'"),
        (whole(1), "\u0661", "--x must be a whole number"),
        (whole(1, 5), "6", "--x must be from 1 to 5"),
        (seconds, "0", "--x must be a finite number of seconds"),
        (seconds, "inf", "--x must be a finite number of seconds"),
        (seconds, "soon", "--x must be a number of seconds, not 'soon'"),
        (seconds_or_never, "-1", "--x must be a finite number of seconds"),
        (seconds_or_never, "", "--x must be a number of seconds"),
    ],
)
def test_what_is_wrong_is_told_by_name(read, text, told):
    with pytest.raises(InvalidRequest, match=told):
        read("--x", text)
