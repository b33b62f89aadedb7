"""The faults that lie in what the server says, and in what the caller passes.

As `.fault_cases`, whose table these rows end.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Any, NamedTuple

from .fault_bench import (
    BOBS,
    Bench,
    Verdict,
    forget_peak,
    judge_end,
    judge_failure,
    judge_reads,
    milliseconds,
    peak_memory,
    store,
    stored,
    value_of,
)
from .fault_cases import case
from .fault_server import Peer

MEGABYTE = 1 << 20
#: So much more memory is still none: buffers, threads, the error's traceback.
LITTLE = 16 * MEGABYTE
#: So much of an endless line is sent.
ENDLESS = 300 * MEGABYTE


@case(
    "the server dies in the middle of a value",
    "500 bytes of an announced 1 000, then the connection is closed. The get has to fail at once.",
)
async def partial(bench: Bench) -> Verdict:
    server = bench.fake("warm")
    client = await bench.warm(server.address)

    def half(peer: Peer, words: list[bytes]) -> bool:
        peer.send(b"VALUE warm 0 1000\r\n" + b"x" * 500)
        peer.close()
        return True

    server.strike("get", half)
    outcome = await bench.outcome(client.get, "warm")
    if outcome.value == value_of("warm"):
        return Verdict("right", True, milliseconds(outcome.seconds), "tried again")
    return judge_failure(outcome)


@case(
    "a segment ends with END inside a value",
    r"The value holds ``END\r\n``, and a TCP segment ends right there. Then six other keys.",
)
async def end_at_edge(bench: Bench) -> Verdict:
    server = bench.fake("warm", *BOBS)
    client = await bench.warm(server.address)
    first, rest = b"the first half\r\nEND\r\n", b"the second half"

    def edge(peer: Peer, words: list[bytes]) -> bool:
        cas = b" 1" if words[0] == b"gets" else b""
        peer.send(b"VALUE warm 0 %d%b\r\n%b" % (len(first + rest), cas, first))
        time.sleep(0.1)
        peer.send(rest + b"\r\nEND\r\n")
        return True

    server.strike("get", edge)
    outcome = await bench.outcome(client.get, "warm")
    if outcome.value == first + rest:
        return judge_reads(await bench.reads(client, BOBS))
    if outcome.kind == "value":
        return Verdict("wrong value", False, detail=f"{outcome.value!r:.80}")
    return Verdict(outcome.kind, False, milliseconds(outcome.seconds), outcome.why)


@case(
    "one byte at a time",
    "A reply of a hundred bytes comes in segments of one byte, 1 ms apart (T is 5 s here).",
)
async def bytewise(bench: Bench) -> Verdict:
    server = bench.memcached("warm")
    proxy = bench.proxy(server)
    client = await bench.warm(proxy.address, timeout=5.0)
    value = b"VALUE warm 0 3\r\nabc\r\n" * 4
    store(server, "warm", value)
    proxy.replies.slice, proxy.replies.pause = 1, 0.001
    outcome = await bench.outcome(client.get, "warm")
    if outcome.value == value:
        return Verdict("right", True)
    if outcome.kind == "value":
        return Verdict("wrong value", False, detail=f"{outcome.value!r:.80}")
    return Verdict(outcome.kind, False, milliseconds(outcome.seconds), outcome.why)


@case(
    "a value drips for longer than the deadline",
    "One byte each 50 ms: the get has to end within T + 250 ms although bytes flow.",
)
async def drip(bench: Bench) -> Verdict:
    server = bench.memcached("warm")
    proxy = bench.proxy(server)
    client = await bench.warm(proxy.address)
    store(server, "warm", b"x" * 100)
    proxy.replies.slice, proxy.replies.pause = 1, 0.05
    verdict = judge_end(await bench.outcome(client.get, "warm"))
    if verdict.word == "hangs":
        verdict.word = "waits on"
    return verdict


@case(
    "a line without an end",
    "300 MB without a line end; the memory that the client takes. It has to fail, with less "
    "than 16 MB.",
    limit=15.0,
)
async def endless_line(bench: Bench) -> Verdict:
    server = bench.fake("warm")
    client = await bench.warm(server.address)
    sent = 0

    def endless(peer: Peer, words: list[bytes]) -> bool:
        nonlocal sent
        piece = b"x" * 65536
        while sent < ENDLESS:
            peer.send(piece)
            sent += len(piece)
        return True

    server.strike("get", endless)
    before = forget_peak()
    outcome = await bench.outcome(client.get, "warm", guard=6.0)
    await asyncio.sleep(0.1)
    return _with_memory(judge_failure(outcome), peak_memory() - before)


@case(
    "a value of 1 TB is announced",
    "``VALUE k 0 1099511627776``, three bytes of it, and silence. The get has to fail at "
    "once. Then six other keys are read.",
    limit=30.0,
)
async def terabyte(bench: Bench) -> Verdict:
    server = bench.fake("warm", *BOBS)
    client = await bench.warm(server.address)

    def announce(peer: Peer, words: list[bytes]) -> bool:
        peer.send(b"VALUE warm 0 1099511627776\r\nabc")
        return True

    server.strike("get", announce)
    before = forget_peak()
    outcome = await bench.outcome(client.get, "warm")
    verdict = _with_memory(judge_failure(outcome), peak_memory() - before)
    after = judge_reads(await bench.reads(client, BOBS))
    if after.good is not True:
        verdict.detail += f"; then {after.word} {after.figure}"
        if after.good is False and verdict.good:
            return after
    return verdict


@case(
    "the value of another key is answered",
    "get(alice) is answered with a VALUE of mallory. It has to be an error.",
)
async def other_key(bench: Bench) -> Verdict:
    server = bench.fake("warm")
    client = await bench.warm(server.address)

    def other(peer: Peer, words: list[bytes]) -> bool:
        cas = b" 1" if words[0] == b"gets" else b""
        peer.send(b"VALUE mallory 0 4%b\r\nevil\r\nEND\r\n" % cas)
        return True

    server.strike("get", other)
    return judge_failure(await bench.outcome(client.get, "alice"))


@case(
    "a reply that nobody asked for",
    "While the client is idle a reply for bob0 comes on its connections; then six keys are "
    "read, bob0 first.",
)
async def unsolicited(bench: Bench) -> Verdict:
    server = bench.memcached("warm", *BOBS)
    proxy = bench.proxy(server)
    client = await bench.warm(proxy.address)
    proxy.say(b"VALUE bob0 0 4\r\nevil\r\nEND\r\n")
    await asyncio.sleep(0.1)
    return judge_reads(await bench.reads(client, BOBS))


# -- hostile arguments


class Attack(NamedTuple):
    """Arguments that an attacker chose; ``value`` None is a get, ``how`` goes to open and set."""

    name: str
    key: str
    value: bytes | None = None
    exptime: int = 0
    flags: int | None = None
    unchecked: bool = False
    noreply: bool = False


FLUSH = b"flush_all"
ATTACKS = (
    Attack("key with CRLF", "k\r\nflush_all"),
    Attack("key with trailing LF", "k\n"),
    Attack("key with a space", "k bob0"),
    Attack("key with NUL", "k\0"),
    Attack("key of 251 bytes", "k" * 251, FLUSH),
    Attack("key of 70 000 bytes", "k" * 70_000, FLUSH),
    Attack("exptime=2**70", "k", FLUSH, exptime=2**70),
    Attack("flags=-1", "k", FLUSH, flags=-1),
    Attack("flags=2**32", "k", FLUSH, flags=2**32),
    Attack("flags=-1, noreply", "k", FLUSH, flags=-1, noreply=True),
    Attack("checks off, key with CRLF", "k\r\nflush_all", unchecked=True),
    Attack("checks off, key of 300 bytes", "k" * 300, FLUSH, unchecked=True),
)


@case(
    "hostile keys, flags and exptimes",
    "Nothing may be flushed, no get afterwards may be wrong. Each on a client of its own: "
    f"{', '.join(attack.name for attack in ATTACKS)}; the value of each set is ``flush_all``. "
    "Those with flags are tried on clients whose set takes flags, those with checks off on "
    "clients whose checks can be switched off.",
    limit=60.0,
)
async def injection(bench: Bench) -> Verdict:
    server = bench.memcached()
    tried = 0
    harmed: list[str] = []
    for attack in ATTACKS:
        if attack.unchecked and not bench.adapter.can_be_unchecked:
            continue
        if attack.flags is not None and not bench.adapter.takes_flags:
            continue
        tried += 1
        harm = await _attack(bench, server, attack)
        if harm:
            harmed.append(f"{attack.name}: {harm}")
    if harmed:
        word = "flushed" if any("flushed" in harm for harm in harmed) else "wrong value"
        return Verdict(word, False, f"{len(harmed)} of {tried}", "; ".join(harmed))
    return Verdict("harmless", True, f"{tried} of {tried}")


async def _attack(bench: Bench, server: Any, attack: Attack) -> str:
    """Returns what harm ``attack`` does, or nothing."""
    for key in ("warm", "canary", *BOBS):
        store(server, key, value_of(key))
    client = await bench.warm(server.address, unchecked=attack.unchecked)
    how: dict[str, Any] = {} if attack.flags is None else {"flags": attack.flags}
    if attack.noreply:
        how["noreply"] = True
    if attack.value is None:
        await bench.by_deadline(client, client.get, attack.key)
    else:
        await bench.outcome(client.set, attack.key, attack.value, attack.exptime, **how)
    await asyncio.sleep(0.02)
    if stored(server, "canary") == b"END\r\n":
        return "flushed"
    after = judge_reads(await bench.reads(client, BOBS))
    if after.good is True:
        return ""
    return after.word if after.good is False else ""


@case(
    "a compressed bomb",
    "A value that is 256 MB when it is decompressed; the memory that reading it takes. Clients "
    "that can decompress are told to.",
    limit=15.0,
)
async def bomb(bench: Bench) -> Verdict:
    if not bench.adapter.decompresses:
        return Verdict("-", None)
    server = bench.fake("warm")
    client = await bench.warm(server.address, compressed=True)
    packed = zlib.compress(bytes(256 * MEGABYTE), 9)

    def send(peer: Peer, words: list[bytes]) -> bool:
        cas = b" 1" if words[0] == b"gets" else b""
        # 8 says "compressed" to each of these clients.
        head = b"VALUE warm 8 %d%b\r\n" % (len(packed), cas)
        peer.send(head + packed + b"\r\nEND\r\n")
        return True

    server.strike("get", send)
    before = forget_peak()
    outcome = await bench.outcome(client.get, "warm", guard=10.0)
    taken = peak_memory() - before
    figure = f"{taken / MEGABYTE:.0f} MB"
    if taken > LITTLE:
        return Verdict("takes", False, figure)
    return Verdict(outcome.kind, True, figure, outcome.why)


def _with_memory(verdict: Verdict, taken: int) -> Verdict:
    if taken > LITTLE:
        detail = f"{verdict.word} {verdict.figure}; {verdict.detail}"
        return Verdict("takes", False, f"{taken / MEGABYTE:.0f} MB", detail)
    verdict.detail += f"; {max(0, taken) / MEGABYTE:.0f} MB"
    return verdict
