"""tornado_memcache.settings: which values a setting may have."""

import inspect
import math

import pytest

from tornado_memcache import Client, InvalidKey, InvalidRequest, InvalidServer
from tornado_memcache.settings import Settings

LENGTHS = ["connect_timeout", "request_timeout", "dead_retry"]
NUMBERS = ["max_connections", "max_pending", "silences_until_dead", "max_value_size"]


def test_the_defaults_of_the_client_are_those_of_the_settings():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(Client).parameters.items()
        if name in Settings._fields
    }
    assert defaults == Settings()._asdict()
    assert Settings().checked() == Settings()
    assert defaults == {
        "connect_timeout": 0.5,
        "request_timeout": 1.0,
        "max_connections": 4,
        "max_pending": 100_000,
        "dead_retry": 30.0,
        "silences_until_dead": 3,
        "max_value_size": 1024 * 1024,
        "flush_on_reconnect": False,
        "min_connections": 0,
        "max_idle": None,
        "on_dead": "fail",
        "gutter_exptime": None,
        "idle_timeout": None,
        "resolve_interval": None,
    }


def test_all_are_keywords():
    parameters = list(inspect.signature(Client).parameters.values())
    assert {one.kind for one in parameters[1:]} == {inspect.Parameter.KEYWORD_ONLY}


def test_lengths_become_floats():
    settings = Settings(connect_timeout=1, request_timeout=2, dead_retry=3).checked()
    assert settings[:2] == (1.0, 2.0)
    assert {type(getattr(settings, name)) for name in LENGTHS} == {float}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, InvalidRequest),
        (-1, InvalidRequest),
        (-0.0, InvalidRequest),
        (math.nan, InvalidRequest),
        (math.inf, InvalidRequest),
        (-math.inf, InvalidRequest),
        pytest.param(10**400, InvalidRequest, id="huge"),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
        (1j, TypeError),
    ],
)
def test_lengths_that_are_refused(name, value, error):
    with pytest.raises(error, match=name):
        Client(["a"], **{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, InvalidRequest),
        (-1, InvalidRequest),
        (1 << 40, InvalidRequest),
        (True, TypeError),
        (1.0, TypeError),
        ("1", TypeError),
        (None, TypeError),
        (math.nan, TypeError),
    ],
)
def test_numbers_that_are_refused(name, value, error):
    with pytest.raises(error, match=name):
        Client(["a"], **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("on_dead", "nonsense", InvalidRequest),
        ("on_dead", None, InvalidRequest),
        ("ring", "nonsense", InvalidRequest),
        ("key_prefix", "a b", InvalidKey),
        ("key_prefix", b"\n", InvalidKey),
        ("key_prefix", "\udc80", InvalidKey),
        ("key_prefix", b"p" * 251, InvalidKey),
        ("key_prefix", 1, TypeError),
        ("key_prefix", 0, TypeError),
        ("key_prefix", False, TypeError),
        ("min_connections", -1, InvalidRequest),
        ("min_connections", 5, InvalidRequest),  # (max_connections is 4)
        ("min_connections", True, TypeError),
        ("min_connections", 1.0, TypeError),
        ("min_connections", None, TypeError),
        ("max_idle", 0, InvalidRequest),
        ("max_idle", -1, InvalidRequest),
        ("max_idle", 10_001, InvalidRequest),
        ("max_idle", True, TypeError),
        ("max_idle", "1", TypeError),
        ("gutter", ["g:1"], InvalidRequest),  # (on_dead is "fail")
        ("gutter_exptime", 5, InvalidRequest),
        ("gutter_exptime", 0, InvalidRequest),
        ("gutter_exptime", 5.0, TypeError),
        ("flush_on_reconnect", "no", TypeError),
        ("flush_on_reconnect", 1, TypeError),
        ("flush_on_reconnect", None, TypeError),
        ("resolver", "dns", TypeError),
        ("resolver", object(), TypeError),
    ],
)
def test_other_settings_that_are_refused(name, value, error):
    with pytest.raises(error, match=name):
        Client(["a"], **{name: value})


def test_fewer_idle_connections_than_are_kept_open_are_refused():
    with pytest.raises(InvalidRequest, match="max_idle must be from 2"):
        Client(["a"], min_connections=2, max_idle=1)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, InvalidRequest, "gutter= and on_dead="),
        ({"gutter": []}, InvalidServer, "gutter must name at least one server"),
        ({"gutter": "g:1"}, TypeError, "gutter must be a list"),
        ({"gutter": ["g:0"]}, InvalidServer, "'g:0'"),
        ({"gutter": ["a:1"]}, InvalidServer, "'a:1' is one of the gutter"),
        ({"gutter": ["unix:/s"], "ssl": True}, InvalidServer, "no TLS"),
        ({"gutter": ["g:1"], "gutter_exptime": 0}, InvalidRequest, "gutter_exptime must be from 1"),
        ({"gutter": ["g:1"], "gutter_exptime": 1 << 30}, InvalidRequest, "gutter_exptime must be"),
    ],
)
def test_a_gutter_that_is_none(options, error, told):
    with pytest.raises(error, match=told):
        Client(["a:1", "b:1"], on_dead="gutter", **options)


@pytest.mark.parametrize("policy", ["fail", "rehash", "miss"])
@pytest.mark.parametrize("option", [{"gutter": ["g:1"]}, {"gutter_exptime": 5}])
def test_settings_of_a_gutter_without_one(policy, option):
    with pytest.raises(InvalidRequest, match=f"{next(iter(option))}.*on_dead"):
        Client(["a:1"], on_dead=policy, **option)


def test_a_setting_that_there_is_not():
    with pytest.raises(TypeError, match="time_out"):
        Client(["a"], time_out=1)
