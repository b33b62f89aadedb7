"""tornado_memcache.pickles: pickles for those who ask for them, and signed ones."""

from __future__ import annotations

import asyncio
import datetime
import hmac
import pickle
import zlib

import pytest

from tornado_memcache import Client, InvalidRequest, Request, SerializationError
from tornado_memcache.errors import NotSerializable
from tornado_memcache.pickles import FLAG_SIGNED_PICKLE, Pickle, SignedPickle

OLD, NEW, OTHER = b"old secret " * 2, b"new secret " * 2, b"other secret " * 2


class Text(str):
    pass


class Number(int):
    pass


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return type(other) is Point and (self.x, self.y) == (other.x, other.y)

    __hash__ = None


SPRUNG: list[str] = []


def spring(name):
    SPRUNG.append(name)


class Trap:
    """Its pickle tells that it was read."""

    def __init__(self, name="sprung"):
        self.name = name

    def __reduce__(self):
        return (spring, (self.name,))


@pytest.fixture(autouse=True)
def no_trap():
    del SPRUNG[:]
    yield
    assert SPRUNG == []


PICKLED = [
    None,
    True,
    False,
    1.5,
    float("inf"),
    1j,
    [],
    [1, "two", b"three"],
    (),
    {"a": {1: [2]}},
    {1, 2},
    datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
    Text("text"),
    Number(7),
    Point(1, 2),
    Point,
]
PLAIN = [
    (b"bytes", b"bytes", 0),
    (b"", b"", 0),
    ("t\u00e9xt", "t\u00e9xt".encode(), 16),
    (7, b"7", 2),
    (-(2**70), b"%d" % -(2**70), 2),
    (bytearray(b"buffer"), b"buffer", 0),
    (memoryview(b"view"), b"view", 0),
]
BOTH = [Pickle(), SignedPickle([NEW])]
both = pytest.mark.parametrize("serializer", BOTH, ids=["Pickle", "SignedPickle"])


# -- both


@both
@pytest.mark.parametrize("value", PICKLED, ids=lambda value: type(value).__name__)
def test_what_goes_in_comes_out(serializer, value):
    data, flags = serializer.encode(b"k", value)
    assert flags == (1 if serializer is BOTH[0] else FLAG_SIGNED_PICKLE)
    assert type(data) is bytes
    back = serializer.decode(b"k", data, flags)
    assert back == value and type(back) is type(value)


@both
@pytest.mark.parametrize(("value", "data", "flags"), PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_stay_plain(serializer, value, data, flags):
    assert serializer.encode(b"k", value) == (data, flags)
    assert serializer.decode(b"k", data, flags) == value
    assert serializer.raw_flags == 0


@pytest.mark.parametrize("kind", [Pickle, lambda **how: SignedPickle([NEW], **how)])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_protocol_is_the_one_that_was_asked_for(kind, protocol):
    serializer = kind(protocol=protocol)
    data, flags = serializer.encode(b"k", {"a": 1})
    pickled = data if flags == 1 else data[32:]
    assert pickled == pickle.dumps({"a": 1}, protocol)
    assert kind().decode(b"k", data, flags) == {"a": 1}


def test_the_default_protocol_is_pickle_s_own():
    assert Pickle().encode(b"k", [1])[0] == pickle.dumps([1])
    assert Pickle(0).encode(b"k", True) == (b"I01\n.", 1)


@pytest.mark.parametrize(
    ("protocol", "error"),
    [(-1, InvalidRequest), (99, InvalidRequest), (True, TypeError), ("2", TypeError)],
)
def test_protocols_that_there_are_not(protocol, error):
    for make in (Pickle, lambda protocol: SignedPickle([NEW], protocol)):
        with pytest.raises(error, match="protocol"):
            make(protocol)


class Breaks:
    def __reduce__(self):
        raise RuntimeError("of the user's own")


def nested():
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


@both
@pytest.mark.parametrize(
    "make", [lambda: Breaks(), lambda: lambda: None, lambda: (x for x in ""), nested]
)
def test_what_cannot_be_pickled(serializer, make):
    value = make()
    with pytest.raises(SerializationError, match="'key-1' cannot be pickled") as caught:
        serializer.encode(b"key-1", value)
    assert "own" not in str(caught.value)
    while isinstance(value, list) and value:  # (its end must not recurse either)
        value = value.pop()


class Raises:
    def __reduce__(self):
        return (int, ("no number",))


@both
@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"garbage",
        pickle.dumps({"a": 1})[:-2],
        b"cno_such_module\nx\n.",
        pickle.dumps(Raises()),
    ],
)
def test_what_cannot_be_unpickled(serializer, pickled):
    data, flags = pickled, 1
    if serializer is BOTH[1]:
        data, flags = signed(NEW, b"key-1", pickled) + pickled, FLAG_SIGNED_PICKLE
    with pytest.raises(SerializationError, match="'key-1' cannot be unpickled"):
        serializer.decode(b"key-1", data, flags)


@both
@pytest.mark.parametrize("flags", [3, 5, 17, 33, 64, 2**32 - 1])
def test_unknown_flags_are_not_taken_for_a_pickle(serializer, flags):
    with pytest.raises(SerializationError, match="unknown flags"):
        serializer.decode(b"k", pickle.dumps(Trap()), flags)


def test_a_pickle_that_is_not_signed_runs_what_its_writer_chose():
    """That is what `Pickle` means, and why it has to be asked for."""
    Pickle().decode(b"k", pickle.dumps(Trap("mine")), 1)
    assert SPRUNG == ["mine"]
    del SPRUNG[:]


def test_pickle_does_not_read_what_is_signed():
    data, flags = SignedPickle([NEW]).encode(b"k", Trap())
    with pytest.raises(SerializationError, match="unknown flags 0x20"):
        Pickle().decode(b"k", data, flags)


# -- the signature


def signed(secret, key, pickled, flags=FLAG_SIGNED_PICKLE):
    text = b"%d %b %d " % (len(key), key, flags)
    return hmac.digest(secret, text + pickled, "sha256")


def test_the_signature_is_over_key_flags_and_pickle():
    data, flags = SignedPickle([NEW]).encode(b"key-1", [1])
    assert flags == 32
    assert data == signed(NEW, b"key-1", pickle.dumps([1])) + pickle.dumps([1])


TRAP = pickle.dumps(Trap())
GOOD = signed(NEW, b"k", TRAP) + TRAP


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 31,
        b"\0" * 32,
        b"\0" * 32 + TRAP,
        TRAP,
        GOOD[:-1],
        GOOD[1:],
        GOOD + b".",
        bytes([GOOD[0] ^ 1]) + GOOD[1:],
        GOOD[:31] + bytes([GOOD[31] ^ 0x80]) + GOOD[32:],
        GOOD[:40] + bytes([GOOD[40] ^ 1]) + GOOD[41:],
        signed(OTHER, b"k", TRAP) + TRAP,
        signed(b"", b"k", TRAP) + TRAP,
        signed(NEW, b"j", TRAP) + TRAP,
        signed(NEW, b"", TRAP) + TRAP,
        signed(NEW, b"k", TRAP, flags=1) + TRAP,
        signed(NEW, b"k", TRAP, flags=40) + TRAP,
        hmac.digest(NEW, TRAP, "sha256") + TRAP,
        hmac.digest(NEW, b"k" + TRAP, "sha256") + TRAP,
    ],
)
def test_a_wrong_signature_is_refused_and_nothing_is_unpickled(data):
    with pytest.raises(SerializationError, match="'k' has a wrong signature") as caught:
        SignedPickle([NEW, OLD]).decode(b"k", data, 32)
    assert SPRUNG == []
    assert "secret" not in str(caught.value)


def test_every_bit_counts():
    data, flags = SignedPickle([NEW]).encode(b"k", Trap())
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        with pytest.raises(SerializationError, match="wrong signature"):
            SignedPickle([NEW]).decode(b"k", bytes(changed), flags)


def test_the_good_signature_is_taken():
    SignedPickle([NEW]).decode(b"k", GOOD, 32)
    assert SPRUNG == ["sprung"]
    del SPRUNG[:]


def test_a_value_that_was_moved_to_another_key_is_refused():
    serializer = SignedPickle([NEW])
    data, flags = serializer.encode(b"user:1", {"admin": True})
    assert serializer.decode(b"user:1", data, flags) == {"admin": True}
    for key in (b"user:2", b"user:", b"user:11", b"USER:1", b"1 user"):
        with pytest.raises(SerializationError, match="wrong signature"):
            serializer.decode(key, data, flags)


def test_the_border_between_key_and_pickle_cannot_be_moved():
    one = SignedPickle([NEW]).encode(b"k", [1])[0]
    pickled = one[32:]
    for cut in range(1, 5):
        moved = one[:32] + pickled[cut:]
        with pytest.raises(SerializationError, match="wrong signature"):
            SignedPickle([NEW]).decode(b"k" + pickled[:cut], moved, 32)


@pytest.mark.parametrize("flags", [0, 16, 2, 4, 1])
def test_other_flags_are_no_way_around_the_signature(flags):
    """Bytes are bytes, text is text and numbers are numbers; only a pickle runs code."""
    forged = TRAP
    try:
        value = SignedPickle([NEW]).decode(b"k", forged, flags)
    except SerializationError as error:
        assert flags != 0 and "'k'" in str(error)
    else:
        assert value == (forged if flags == 0 else forged.decode())
    assert SPRUNG == []


def test_a_pickle_without_a_signature_is_refused():
    with pytest.raises(SerializationError, match="'k' is a pickle without a signature"):
        SignedPickle([NEW]).decode(b"k", TRAP, 1)


def test_keys_are_replaced_while_values_live():
    old, both_, new = SignedPickle([OLD]), SignedPickle([NEW, OLD]), SignedPickle([NEW])
    before = old.encode(b"k", [1])
    assert both_.decode(b"k", *before) == [1]
    after = both_.encode(b"k", [2])
    assert new.decode(b"k", *after) == [2]  # the first key signs
    assert both_.decode(b"k", *after) == [2]
    for serializer, stored in ((new, before), (old, after)):
        with pytest.raises(SerializationError, match="wrong signature"):
            serializer.decode(b"k", *stored)


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ([], InvalidRequest),
        ((), InvalidRequest),
        ([b""], InvalidRequest),
        ([b"x" * 15], InvalidRequest),
        ([NEW, b"short"], InvalidRequest),
        (b"x" * 32, TypeError),
        ("x" * 32, TypeError),
        (["x" * 32], TypeError),
        ([NEW, None], TypeError),
        ([bytearray(32)], TypeError),
        (None, TypeError),
        (7, TypeError),
    ],
)
def test_keys_that_are_refused(keys, error):
    with pytest.raises(error) as caught:
        SignedPickle(keys)
    assert "secret " not in str(caught.value) and "xxx" not in str(caught.value)


def test_keys_may_come_from_an_iterator_and_are_kept():
    keys = [NEW]
    serializer = SignedPickle(key for key in keys)
    keys.append(OLD)
    with pytest.raises(SerializationError):
        serializer.decode(b"k", *SignedPickle([OLD]).encode(b"k", [1]))
    assert len(SignedPickle([b"x" * 16]).encode(b"k", [])[0]) > 32


def test_the_repr_shows_no_secret():
    serializer = SignedPickle([b"secret-" * 3, b"other--" * 3])
    client = Client(["a"], serializer=serializer)
    for text in (repr(serializer), str(serializer), f"{serializer}", repr(client)):
        assert "secret" not in text and "other" not in text
    assert "2" in repr(serializer)
    client.close()


# -- through the client


@pytest.mark.gen_test
@both
async def test_every_way_to_read(memcached, serializer):
    value = {"a": [1, None, 2.5], "self": Point(1, 2)}
    async with Client([memcached.address], serializer=serializer, key_prefix="p:") as client:
        assert await client.set("k", value)
        assert await client.get("k") == value
        assert (await client.gets("k"))[0] == value
        assert await client.gat("k", 100) == value
        assert await client.get_multi(["k", "gone"]) == {"k": value}
        assert (await client.gets_multi(["k"]))["k"][0] == value
        done = asyncio.get_running_loop().create_future()
        client.get("k", callback=done.set_result)
        assert await done == value
        assert await client.set_multi({"m": None, "n": True}) == []
        found = await client.get_multi(["m", "n"])
        assert found == {"m": None, "n": True} and type(found["n"]) is bool
        assert await client.get("m", default="default") is None
        _, unique = await client.gets("k")
        assert await client.cas("k", [value], unique)
        assert await client.get("k") == [value]


@pytest.mark.gen_test
@both
async def test_numbers_can_be_counted_and_text_appended(memcached, serializer):
    async with Client([memcached.address], serializer=serializer) as client:
        await client.set("n", 41)
        assert await client.incr("n") == 42
        assert await client.get("n") == 42
        await client.set("t", "a")
        await client.append("t", "b")
        assert await client.get("t") == "ab"


@pytest.mark.gen_test
@both
async def test_a_pickle_may_be_compressed(memcached, serializer):
    value = ["long"] * 1000
    async with Client([memcached.address], serializer=serializer, compress_over=100) as client:
        await client.set("k", value)
        item = (await client.request(Request(b"get", (b"k",)))).items[b"k"]
        assert item.flags == (9 if serializer is BOTH[0] else 40)
        assert zlib.decompress(item.value) == serializer.encode(b"k", value)[0]
        assert await client.get("k") == value


@pytest.mark.gen_test
async def test_what_was_tampered_with_is_refused_on_every_way(memcached):
    async with Client([memcached.address], serializer=SignedPickle([NEW])) as client:
        await client.set("good", [1])
        good = (await client.request(Request(b"get", (b"good",)))).items[b"good"]
        forged = {
            b"moved": (good.value, 32),
            b"unsigned": (TRAP, 1),
            b"unsigned-packed": (zlib.compress(TRAP * 9), 9),
            b"forged": (b"\0" * 32 + TRAP, 32),
            b"forged-packed": (zlib.compress(b"\0" * 32 + TRAP), 40),
        }
        for key, (data, flags) in forged.items():
            await client.request(Request(b"set", (key,), data, flags))
        for key in forged:
            for call in (client.get(key), client.gets(key), client.gat(key, 0)):
                with pytest.raises(SerializationError, match="signature"):
                    await call
            failed = asyncio.get_running_loop().create_future()
            client.get(key, callback=failed.set_exception, fail_callback=failed.set_result)
            assert isinstance(await failed, SerializationError)
        result = await client.get_multi([*forged, "good"])
        assert result == {"good": [1]}
        assert isinstance(result.errors[memcached.address], SerializationError)
        with pytest.raises(SerializationError):
            await client.get_multi([*forged, "good"], strict=True)
        assert await client.get("good") == [1]


@pytest.mark.gen_test
async def test_the_signed_key_is_the_one_on_the_wire(memcached):
    """So clients with one prefix share values, and no prefix takes those of another."""
    how = {"serializer": SignedPickle([NEW])}
    async with Client([memcached.address], key_prefix="a:", **how) as one:
        await one.set("k", [1])
        async with Client([memcached.address], **how) as whole:
            assert await whole.get("a:k") == [1]
            assert await whole.get((7, "a:k")) == [1]


@pytest.mark.gen_test
async def test_the_client_refuses_pickles_unless_it_is_told(memcached):
    async with Client([memcached.address]) as client:
        await client.request(Request(b"set", (b"k",), TRAP, 1))
        with pytest.raises(SerializationError, match="To opt in"):
            await client.get("k")
        with pytest.raises(NotSerializable):
            client.set("k", [1])


@pytest.mark.gen_test
@both
async def test_what_cannot_be_pickled_is_raised_at_the_call(memcached, serializer):
    async with Client([memcached.address], serializer=serializer) as client:
        for call in (client.set, client.add, client.append):
            with pytest.raises(NotSerializable) as caught:
                call("k", Breaks())
            assert isinstance(caught.value, InvalidRequest)
        with pytest.raises(NotSerializable):
            client.set_multi({"a": 1, "b": lambda: None})
        assert await client.get_multi(["a", "b", "k"]) == {}
