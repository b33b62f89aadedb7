"""What the meta verbs do to the items of a `.Store` (protocol.txt, "Meta Commands").

Knows what each flag asks of an item and tells of it, as memcached 1.6.18 does
it: stubs for those who are to fill them, items that are stale, and who knows
that it is to make them anew. It must not know a line of the wire
(`.meta_server`), a socket or a loop.
"""

from collections.abc import Callable

from .items import Entry
from .meta_server import Flags, echoed, encoded_key, flags_of, key_told
from .protocol import Reply, Request
from .store import Store

#: The verb that each mode of ``ms`` stands for.
_MODES = {b"": b"set", b"S": b"set", b"E": b"add", b"A": b"append", b"P": b"prepend"}
_MODES[b"R"] = b"replace"
_STATUSES = {b"STORED": b"HD", b"NOT_STORED": b"NS", b"EXISTS": b"EX", b"NOT_FOUND": b"NF"}


def _remaining(entry: Entry, now: int) -> int:
    """Returns the seconds that an item still lives, -1 for ever, in memcached's 32 bits."""
    return (entry.expires - now) % (1 << 32) if entry.expires else -1


#: What the flags of ``mg`` tell of an item.
_TOLD: dict[bytes, Callable[[Entry, int], int]] = {
    b"s": lambda entry, now: len(entry.item.value),
    b"t": _remaining,
    b"c": lambda entry, now: entry.item.cas_unique or 0,
    b"f": lambda entry, now: entry.item.flags,
    b"l": lambda entry, now: now - entry.accessed,
    b"h": lambda entry, now: int(entry.fetched),
}


class MetaVerbs:
    """The meta verbs over ``store``: `answer` takes a `.Request` and returns the `.Reply`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._verbs: dict[bytes, Callable[[Request], Reply]] = {
            b"mg": self._mg,
            b"ms": self._ms,
            b"md": self._md,
            b"ma": self._ma,
            b"me": self._me,
            b"mn": lambda request: Reply(b"MN"),
        }

    def answer(self, request: Request) -> Reply:
        """Returns the reply. Raises `.ClientError` where the request is refused."""
        return self._verbs[request.verb](request)

    def _mg(self, request: Request) -> Reply:
        store, key = self._store, request.keys[0]
        flags = flags_of(request)
        bumps = not flags.has(b"u")
        entry, created = store.find(key, use=bumps), False
        if entry is None and flags.vivify is not None:
            entry, created = store.put(key, b""), True
        if entry is None:
            store.counts["cmd_get"] += 1
            store.counts["get_misses"] += 1
            return Reply(b"EN", text=echoed(flags, key, flags.has(b"b")))
        touches = flags.exptime is not None
        store.counts["cmd_touch" if touches else "cmd_get"] += 1
        store.counts["touch_hits" if touches else "get_hits"] += 1
        told = self._tell(key, entry, flags, created)
        if bumps:
            store.fetched(entry)
        if flags.has(b"v"):
            return Reply(b"VA", text=told, value=entry.item.value)
        return Reply(b"HD", text=told)

    def _tell(self, key: bytes, entry: Entry, flags: Flags, created: bool) -> bytes:
        """Does what the flags of a hit ask for, in their order, and returns what they tell."""
        store, now = self._store, self._store.now()
        told, wins = [], False
        for word in flags.words:
            letter = word[:1]
            if letter in _TOLD:
                told.append(b"%b%d" % (letter, _TOLD[letter](entry, now)))
            elif letter == b"k":
                told.append(key_told(key, entry.binary))
            elif letter == b"O":
                told.append(word)
            elif letter == b"T":
                entry.expires = store.moment_of(flags.exptime or 0)
            elif letter == b"N" and created:
                entry.expires, wins = store.moment_of(flags.vivify or 0), True
            elif letter == b"R" and not (entry.won or created):
                wins = wins or 0 < entry.expires < store.moment_of(flags.recache or 0)
        if entry.won:
            told.append(b"Z")
        if entry.stale:
            told.append(b"X")
            wins = wins or not entry.won
        if wins:
            told.append(b"W")
            entry.won = True
        return b" ".join(told)

    def _ms(self, request: Request) -> Reply:
        key, flags = request.keys[0], flags_of(request)
        binary, verb = flags.has(b"b"), _MODES[flags.mode]
        if flags.cas_unique is not None and verb in (b"set", b"replace"):
            verb = b"cas"
        status, entry = self._store.keep(
            verb,
            key,
            request.value,
            flags.client_flags,
            flags.exptime or 0,
            flags.cas_unique or 0,
            flags.has(b"I"),
        )
        cas_unique = 0
        if entry is not None:
            cas_unique = entry.item.cas_unique or 0
            # memcached joins two items to one that has forgotten what its key was.
            entry.binary = binary and verb not in (b"append", b"prepend")
        return Reply(_STATUSES[status], text=echoed(flags, key, binary, cas_unique))

    def _md(self, request: Request) -> Reply:
        store, key = self._store, request.keys[0]
        flags = flags_of(request)
        text = echoed(flags, key, flags.has(b"b"))
        entry = store.find(key, use=False)
        if entry is None:
            store.counts["delete_misses"] += 1
            return Reply(b"NF", text=text)
        if flags.cas_unique is not None and flags.cas_unique != entry.item.cas_unique:
            store.counts["delete_misses"] += 1
            return Reply(b"EX", text=text)
        if flags.has(b"I"):
            if flags.exptime is not None:
                entry.expires = store.moment_of(flags.exptime)
            entry.stale, entry.won = True, False
            entry.item = entry.item._replace(cas_unique=store.next_cas())
        else:
            store.counts["delete_hits"] += 1
            store.remove(key)
        return Reply(b"HD", text=text)

    def _ma(self, request: Request) -> Reply:
        store, key = self._store, request.keys[0]
        flags = flags_of(request)
        verb = "decr" if flags.mode in (b"D", b"-") else "incr"
        status, number, entry = store.count(verb, key, flags.delta, flags.cas_unique or 0)
        created = status == b"NOT_FOUND" and flags.vivify is not None
        if created:
            store.counts[f"{verb}_misses"] -= 1
            number = flags.initial
            entry = store.put(key, b"%d" % number)
        if entry is None:
            status = _STATUSES[status]
            return Reply(status, text=echoed(flags, key, flags.has(b"b")))
        text = self._tell_number(key, entry, flags, created)
        if flags.has(b"v"):
            return Reply(b"VA", number=int(created), text=text, value=b"%d" % number)
        return Reply(b"HD", number=int(created), text=text)

    def _tell_number(self, key: bytes, entry: Entry, flags: Flags, created: bool) -> bytes:
        store, now, told = self._store, self._store.now(), []
        for word in flags.words:
            letter = word[:1]
            if letter in (b"c", b"t"):
                told.append(b"%b%d" % (letter, _TOLD[letter](entry, now)))
            elif letter == b"k":
                told.append(key_told(key, flags.has(b"b")))
            elif letter == b"O":
                told.append(word)
            elif letter == b"T":
                entry.expires = store.moment_of(flags.exptime or 0)
            elif letter == b"N" and created:
                entry.expires = store.moment_of(flags.vivify or 0)
        return b" ".join(told)

    def _me(self, request: Request) -> Reply:
        store, key = self._store, request.keys[0]
        store.counts["cmd_meta"] += 1
        entry = store.find(key, use=False)
        if entry is None:
            return Reply(b"EN")
        now = store.now()
        text = b"%b exp=%d la=%d cas=%d fetch=%b cls=1 size=%d" % (
            encoded_key(key) if entry.binary else key,
            now - entry.expires if entry.expires else -1,
            now - entry.accessed,
            entry.item.cas_unique or 0,
            b"yes" if entry.fetched else b"no",
            entry.size,
        )
        return Reply(b"ME", text=text)
