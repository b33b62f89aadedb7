"""tornado_memcache.refusals: whose outcome an error line is, and what it may tell.

Which connection survives which line is shown in test_protocol and
test_faults_replies.
"""

from __future__ import annotations

import pytest

from tornado_memcache.errors import ClientError, ProtocolError, ServerError
from tornado_memcache.protocol import TOO_MANY_CONNECTIONS, ConnectionRefused, OwedReplies
from tornado_memcache.refusals import refusal

from .test_protocol import LIMIT, slot


def test_an_error_line_names_what_was_asked_and_what_the_server_said():
    error = refusal(slot(b"get", b"a"), b"SERVER_ERROR busy", OwedReplies(LIMIT))
    assert type(error) is ServerError and str(error) == "get 'a': the server said: busy"


@pytest.mark.parametrize("line", [b"", b"STORED", b"secret words"])
def test_what_is_no_error_line_is_told_by_its_kind_alone(line):
    with pytest.raises(ProtocolError) as caught:
        refusal(slot(b"get", b"a"), line, OwedReplies(LIMIT))
    assert "secret" not in str(caught.value)


def test_a_server_that_repeats_the_value_is_not_quoted():
    one = slot(b"ms", b"a", value=b"secret value")
    error = refusal(one, b"CLIENT_ERROR secret value", OwedReplies(LIMIT))
    assert type(error) is ClientError and "secret" not in str(error)


def test_the_first_line_of_a_connection_may_refuse_it_and_no_later_one():
    owed = OwedReplies(LIMIT)
    with pytest.raises(ConnectionRefused):
        refusal(slot(b"mg", b"a"), TOO_MANY_CONNECTIONS, owed)
    owed.answered = True
    assert type(refusal(slot(b"mg", b"a"), TOO_MANY_CONNECTIONS, owed)) is ClientError


def test_behind_an_unconfirmed_noreply_it_is_nobodys():
    one = slot(b"mg", b"a")
    one.confirms = (b"n",)
    with pytest.raises(ProtocolError, match="cannot be attributed"):
        refusal(one, b"ERROR", OwedReplies(LIMIT))
