"""Native outcomes as python-memcached's: awaited, called back, under a boundary."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tornado_memcache import (
    ClientError,
    ConnectionFailed,
    MemcacheError,
    SerializationError,
    ServerError,
    Timeout,
    boundary,
)
from tornado_memcache.memcache_outcomes import REACHED, STORED, Outcomes


def unread() -> SerializationError:
    error = SerializationError("cannot be read")
    error.__cause__ = ValueError("Unknown flags on get: 40")
    return error


class Face(Outcomes):
    """The part under test over a native call that a test ends."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.inner: Any = None

    def debuglog(self, str: str) -> None:
        self.lines.append(str)

    def begin(self, timeout: Any = None, callback: Any = None, fail_callback: Any = None) -> Any:
        self.inner = asyncio.get_running_loop().create_future()
        self.callback, self.fail_callback, self.timeout = callback, fail_callback, timeout
        return self.inner if callback is None and fail_callback is None else None

    def call(self, good: Any = str, **how: Any) -> Any:
        refused = how.pop("refused", None)
        return self._translate(self.begin, good, "F", how, refused=refused)


#: A failure, and what it is: a value, or an exception.
FAILURES = [
    (ConnectionFailed("gone"), "F"),
    (Timeout("late"), "F"),
    (ServerError("out of memory"), "refused"),
    (ClientError("incr: cannot increment non-numeric value"), ValueError),
    (ClientError("bad data chunk"), "refused"),
    (SerializationError("cannot be read"), "F"),
    (unread(), ValueError),
]


def test_every_status_has_its_value():
    assert [STORED[one] for one in (b"STORED", b"", b"NOT_STORED", b"EXISTS", b"NOT_FOUND")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    values = [REACHED[one] for one in (b"DELETED", b"TOUCHED", b"", b"NOT_FOUND")]
    assert values == [1, 1, 1, 0] and not any(isinstance(one, bool) for one in values)


@pytest.mark.gen_test
async def test_a_success_in_both_styles():
    face, got = Face(), []
    call = face.call(timeout=3)
    face.inner.set_result(5)
    assert await call == "5" and face.timeout == 3
    assert face.call(callback=got.append, fail_callback=print) is None
    face.callback(5)
    assert got == ["5"] and face.lines == []
    face.call(fail_callback=print)
    face.callback(5)  # nobody asked for it


@pytest.mark.parametrize("error, outcome", FAILURES)
@pytest.mark.gen_test
async def test_a_failure_awaited(error, outcome):
    face = Face()
    call = face.call(refused="refused")
    face.inner.set_exception(error)
    if outcome is ValueError:
        with pytest.raises(ValueError):
            await call
    else:
        assert await call == outcome and face.lines == [str(error)]


@pytest.mark.parametrize("error, outcome", FAILURES)
@pytest.mark.gen_test
async def test_a_failure_in_callback_style(error, outcome):
    face, got, failed = Face(), [], []
    face.call(callback=got.append, fail_callback=failed.append, refused="refused")
    face.fail_callback(error)
    assert got == [] and len(failed) == 1
    assert isinstance(failed[0], ValueError if outcome is ValueError else MemcacheError)
    face.call(callback=got.append, refused="refused")
    if outcome is ValueError:
        with pytest.raises(ValueError):
            face.fail_callback(error)
    else:
        face.fail_callback(error)
        assert got == [outcome]


@pytest.mark.gen_test
async def test_under_a_boundary_the_native_call_fails_by_itself():
    face = Face()
    with boundary(print):
        face.call(callback=print)
        assert face.fail_callback is None
        face.call(callback=print, fail_callback=print)
        assert face.fail_callback is not None
        face.call()
        assert face.callback is None


@pytest.mark.gen_test
async def test_an_outcome_that_turns_out_to_be_a_failure():
    gone, face = ConnectionFailed("every server"), Face()

    def bad(result: Any) -> Any:
        raise gone

    call = face.call(bad)
    face.inner.set_result([])
    assert await call == "F"
    got: list[Any] = []
    failed: list[Any] = []
    face.call(bad, callback=got.append, fail_callback=failed.append)
    face.callback([])
    assert (got, failed) == ([], [gone])
    face.call(bad, callback=got.append)
    face.callback([])
    assert got == ["F"]
    with boundary(failed.append):
        face.call(bad, callback=got.append)
        with pytest.raises(ConnectionFailed):  # and so it goes to the boundary
            face.callback([])


@pytest.mark.gen_test
async def test_what_is_no_error_of_the_package_is_raised():
    face, failed = Face(), []
    call = face.call(lambda result: 1 / 0)
    face.inner.set_result(1)
    with pytest.raises(ZeroDivisionError):
        await call
    face.call(lambda result: 1 / 0, callback=print)
    with pytest.raises(ZeroDivisionError):
        face.callback(1)
    face.call(lambda result: 1 / 0, callback=print, fail_callback=failed.append)
    face.callback(1)
    assert [type(error) for error in failed] == [ZeroDivisionError]


@pytest.mark.gen_test
async def test_who_cancels():
    face = Face()
    call = face.call()
    face.inner.cancel()  # as a boundary does
    assert await call == "F"
    call = face.call()
    call.cancel()
    await asyncio.sleep(0)
    assert face.inner.cancelled()


@pytest.mark.gen_test
async def test_keywords():
    face = Face()
    for how in ({"nonsense": 1}, {"callback": 5}, {"fail_callback": "x"}):
        with pytest.raises(TypeError, match=next(iter(how))):
            face.call(**how)
    assert face.inner is None
