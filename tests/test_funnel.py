"""What commands need of a client, and that the client gives all of it."""

from __future__ import annotations

import pytest

from tornado_memcache import Client
from tornado_memcache.commands import Commands
from tornado_memcache.funnel import Funnel, How


def test_a_funnel_has_to_be_given():
    for kind in (Funnel, Commands):
        with pytest.raises(TypeError, match="abstract"):
            kind()
    assert not Client.__abstractmethods__


def test_every_command_takes_the_same_three_keywords():
    assert set(How.__annotations__) == {"timeout", "callback", "fail_callback"}
