"""tornado_memcache.serializer: what goes in comes out, of the same type."""

import pickle

import pytest

from tornado_memcache.errors import SerializationError
from tornado_memcache.serializer import Plain

PLAIN = Plain()

GOOD = [
    (b"", b"", 0),
    (b"bytes", b"bytes", 0),
    (bytes(range(256)), bytes(range(256)), 0),
    (b"\r\nEND\r\n", b"\r\nEND\r\n", 0),
    ("", b"", 16),
    ("text", b"text", 16),
    ("\u00e9\u4e2d\U0001f600\0", "\u00e9\u4e2d\U0001f600\0".encode(), 16),
    (0, b"0", 2),
    (-1, b"-1", 2),
    (2**64, b"18446744073709551616", 2),
    (-(10**4000), b"-1" + b"0" * 4000, 2),
]


class Text(str):
    pass


class Number(int):
    pass


@pytest.mark.parametrize(("value", "data", "flags"), GOOD)
def test_bytes_str_and_int_come_back_as_the_type_that_went_in(value, data, flags):
    assert PLAIN.encode(b"k", value) == (data, flags)
    back = PLAIN.decode(b"k", data, flags)
    assert back == value and type(back) is type(value)


def test_a_long_of_python_2_is_an_int():
    assert PLAIN.decode(b"k", b"12345678901234567890", 4) == 12345678901234567890


def test_what_memcached_leaves_behind_a_number_is_no_part_of_it():
    assert PLAIN.decode(b"k", b"9 ", 2) == 9


def test_raw_flags_are_those_of_values_that_need_no_decoding():
    assert PLAIN.raw_flags == 0
    data = b"as it is"
    assert PLAIN.decode(b"k", data, PLAIN.raw_flags) is data


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_buffer_is_copied(kind):
    buffer = bytearray(b"before")
    data, flags = PLAIN.encode(b"k", kind(buffer))
    buffer[:] = b"behind"
    assert (data, flags) == (b"before", 0)
    assert type(data) is bytes


@pytest.mark.parametrize(
    "value",
    [None, True, False, 1.5, 1j, [1], (1,), {"a": 1}, {1}, object(), Text("a"), Number(1), int],
)
def test_other_types_are_refused_with_a_way_out(value):
    with pytest.raises(SerializationError, match="serializer=") as caught:
        PLAIN.encode(b"key-1", value)
    assert "'key-1'" in str(caught.value)
    assert type(value).__name__ in str(caught.value)


def test_text_that_cannot_be_encoded():
    with pytest.raises(SerializationError, match="utf-8") as caught:
        PLAIN.encode(b"k", "\udc80")
    assert "udc80" not in str(caught.value)  # (values are never part of a message)


def test_a_number_with_too_many_digits():
    # Only a Python that limits the digits refuses it; any other stores it.
    try:
        data, _ = PLAIN.encode(b"k", 10**5000)
    except SerializationError as error:
        assert "digits" in str(error)
    else:
        assert PLAIN.decode(b"k", data, 2) == 10**5000


@pytest.mark.parametrize(
    ("data", "flags", "told"),
    [
        (b"abc", 2, "flags"),
        (b"", 2, "flags"),
        (b"1.5", 4, "flags"),
        (b"\xff", 16, "flags"),
        (b"x", 3, "unknown flags 0x3"),
        (b"x", 8, "unknown flags 0x8"),
        (b"x", 17, "unknown flags"),
        (b"x", 2**32 - 1, "unknown flags 0xffffffff"),
    ],
)
def test_what_cannot_be_read(data, flags, told):
    with pytest.raises(SerializationError, match=told) as caught:
        PLAIN.decode(b"key-1", data, flags)
    assert "'key-1'" in str(caught.value)


def test_a_pickle_is_refused_and_never_read():
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    with pytest.raises(SerializationError, match="To opt in") as caught:
        PLAIN.decode(b"k", pickle.dumps(Trap()), 1)
    assert "serializer=" in str(caught.value)
    assert "tornado_memcache.pickles.SignedPickle(keys)" in str(caught.value)
