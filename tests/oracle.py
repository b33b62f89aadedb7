"""What the machine's memcached answers, and what any other server is compared with it by.

`corpus` gives streams of requests, right and wrong; `compare` sends one to two
servers and returns what each answered, without what may differ (`VARIES`).
Servers are given as ``ask``: a function that sends bytes in one segment, ends
its side, and returns all that came back until the other side had ended too
(`asking` makes one of an address). It must not know the package, nor what is
behind an address.

Not in the corpus is what does differ, and is meant to:

- a line of over 2 048 bytes, which memcached answers if it arrives in one
  segment and closes on if it does not: an error or a close;
- replies before a line that closes on a browser, or before a ``get`` with too
  long a key, in one segment: memcached drops them;
- the keys of a ``gat`` before one that is too long: memcached touches them;
- an opaque that is too long: memcached says so when it has done what the
  flags before it ask for;
- ``flush_all`` after ``flush_all`` with a delay: memcached may bring back
  what the first one took;
- a number that is changed while the answer to an ``mg`` of it has not been
  sent: memcached makes a new item then, without the marks of the old one (an
  ``mn`` between the two has it sent);
- whether the length of a number stays when memcached's own threads look at it;
- ``watch``, ``lru``, ``lru_crawler``, ``slabs``, ``refresh_certs``: what they
  speak of is not there;
- what `VARIES` takes out of an answer.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .oracle_streams import BLOCKS, LINES, ODD_BLOCKS, ODD_LINES, STREAMS, store

Ask = Callable[[bytes], bytes]

#: What is not compared: times, and what depends on the slab allocator.
VARIES = (
    (re.compile(rb"^(ME .*) la=\d+ (.*) cls=\d+ size=\d+\r$", re.M), rb"\1 \2\r"),
    (re.compile(rb"^STAT items:.*\r\n", re.M), b""),
    # Expired before it was stored: how long ago is memcached's own time.
    (re.compile(rb"\bt42949\d\d\d\d\d\b"), b"t(past)"),
)
#: What empties a server and tells its newest cas_unique, and what counts that on by one.
EMPTIES = b"flush_all\r\nset z 0 0 1\r\n1\r\ngets z\r\ndelete z\r\n"
COUNTS = b"set z 0 -1 0 noreply\r\n\r\n"
#: What stands for a cas_unique: ``%CAS%``, ``%CAS+2%``.
_MARK = re.compile(rb"%CAS(?:\+([0-9]+))?%")
#: A stream may cross a second, and a thread of memcached's look at a number:
#: so often they are compared before they differ.
ATTEMPTS = 4

#: Of these a stream needs a server that nothing was asked before.
ALONE = ("flush_all", "stats")

#: What is there before each of the single requests.
BEFORE = (
    store(b"a", b"abc", b"5 0")
    + store(b"n", b"10", b"0 100")
    + b"ms YmluYXJ5 2 b T50\r\nbb\r\nms s 2 T60 F9\r\n77\r\nmd s I\r\n"
)
#: ... and what is asked behind it. (The ``mn`` have what was answered sent.)
BEHIND = (
    b"mn\r\ngets a n binary s z\r\nmg a s v t c f h k\r\nmg n s v t c h\r\n"
    b"mg s v t c\r\nmn\r\nmg YmluYXJ5 b k v\r\nmg z k O1 v t\r\nmn\r\nversion\r\n"
)


class Stream(NamedTuple):
    """Requests that are sent in one segment.

    In ``data`` ``%CAS%`` stands for the cas_unique of the first item that
    is stored, ``%CAS+1%`` for that of the next. A stream that is ``alone`` needs servers that
    nothing was asked before.
    """

    name: str
    data: bytes
    alone: bool = False


def corpus() -> Iterator[Stream]:
    """Yields the streams, each with a name of its own."""
    for name, data in STREAMS.items():
        yield Stream(name, data, name in ALONE)
    for number, line in enumerate(LINES + ODD_LINES):
        yield Stream(f"{number}: {_shown(line)}", BEFORE + line + b"\r\n" + BEHIND)
    for number, line in enumerate(BLOCKS):
        yield Stream(f"block {number}: {_shown(line)}", BEFORE + line + b"\r\nxy\r\n" + BEHIND)
    for number, data in enumerate(ODD_BLOCKS):
        yield Stream(f"odd block {number}: {_shown(data)}", BEFORE + data + BEHIND)


def _shown(data: bytes) -> str:
    return repr(data[:60])[2:-1].replace("[", "(").replace("]", ")")


def asking(address: str) -> Ask:
    """Returns what asks the server at ``address`` (``"host:port"``)."""
    host, port = address.rsplit(":", 1)

    def ask(data: bytes) -> bytes:
        with socket.create_connection((host, int(port)), timeout=10) as peer:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: peer.recv(65536), b""))

    return ask


def newest_cas_unique(ask: Ask) -> int:
    """Empties a server, and returns the newest cas_unique that it has given."""
    reply = ask(EMPTIES)
    found = re.search(rb"VALUE z 0 1 (\d+)", reply)
    assert found, reply
    return int(found[1])


def level(*asks: Ask) -> int:
    """Empties the servers, and has all give the same cas_unique next. Returns the newest."""
    newest = [newest_cas_unique(ask) for ask in asks]
    for ask, one in zip(asks, newest):
        behind = max(newest) - one
        if behind:
            answer = ask(COUNTS * behind + b"mn\r\n")
            assert answer == b"MN\r\n", answer
    return max(newest)


def compared(answer: bytes) -> bytes:
    """Returns what is compared of an answer."""
    for pattern, instead in VARIES:
        answer = pattern.sub(instead, answer)
    return answer


def _with_numbers(data: bytes, newest: int) -> bytes:
    return _MARK.sub(lambda mark: b"%d" % (newest + 1 + int(mark[1] or 0)), data)


def compare(data: bytes, *asks: Ask) -> list[bytes]:
    """Sends ``data`` to each server; returns what is compared of their answers.

    If they differ they are asked again (see `ATTEMPTS`).
    """
    for _ in range(ATTEMPTS):
        sent = _with_numbers(data, level(*asks))
        answers = [compared(ask(sent)) for ask in asks]
        if all(answer == answers[0] for answer in answers):
            break
    return answers
