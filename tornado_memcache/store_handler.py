"""Which request asks what of a store: the handler of a memcached.

Knows the verbs of both dialects and the names that ``stats`` tells
(protocol.txt, "Statistics"). It must not know how a request is written, who
is connected, or what a verb does to an item (`.store`, `.meta_store`).
"""

from collections import Counter
from collections.abc import Callable, Sequence

from .meta_store import MetaVerbs
from .prefixes import Prefixes
from .protocol import Item, Reply, Request
from .store import Store
from .words import read_unsigned

#: The memcached whose answers these are; clients look at its numbers.
VERSION = b"1.6.18"

_MEGABYTE = 1024 * 1024
#: memcached takes no limit below this many megabytes, and none above so many.
_LEAST_MEGABYTES, _MOST_MEGABYTES = 8, 1_000_000_000
#: How wide the classes of ``stats sizes`` are, in bytes.
_SIZES = 32
#: memcached has so many classes of slabs.
_SLAB_CLASSES = 64

_Facts = Callable[[], dict[str, object]]


class StoreHandler:
    """Answers requests out of a `.Store`: a handler for a `.FrontDoor`.

    ``facts`` gives what ``stats`` tells of the server beside its items,
    ``settings`` what ``stats settings`` does. ``cluster`` is what ``config
    get cluster`` answers: a version and the nodes, each ``"host|ip|port"``.
    Without it that is no command, as with a memcached that no cloud manages.
    """

    def __init__(self, store: Store, facts: _Facts = dict, settings: _Facts = dict) -> None:
        self.store = store
        self.cluster: tuple[int, Sequence[str]] | None = None
        self.verbosity = 0
        self.prefixes = Prefixes()
        self._facts, self._settings = facts, settings
        self._counts_sizes = False
        meta = MetaVerbs(store).answer
        self._verbs: dict[bytes, Callable[[Request], Reply]] = {
            **dict.fromkeys((b"get", b"gets", b"gat", b"gats"), self._get),
            **dict.fromkeys((b"set", b"add", b"replace", b"append", b"prepend"), self._keep),
            **dict.fromkeys((b"mg", b"ms", b"md", b"ma", b"mn", b"me"), meta),
            b"cas": self._keep,
            b"incr": self._count,
            b"decr": self._count,
            b"delete": self._delete,
            b"touch": self._touch,
            b"flush_all": self._flush_all,
            b"cache_memlimit": self._cache_memlimit,
            b"version": lambda request: Reply(b"VERSION", text=VERSION),
            b"verbosity": self._verbosity,
            b"stats": self._stats,
            b"config": self._config,
        }
        self._told: dict[bytes, Callable[[list[bytes]], Reply]] = {
            b"reset": self._reset,
            b"detail": self._detail,
            b"settings": self._stats_settings,
            b"items": self._stats_items,
            b"slabs": self._stats_slabs,
            b"sizes": self._stats_sizes,
            b"sizes_enable": self._set_sizes,
            b"sizes_disable": self._set_sizes,
            b"cachedump": self._cachedump,
            b"extstore": lambda words: Reply(b"END"),
        }

    def __call__(self, request: Request) -> Reply:
        """Returns the reply to ``request``. Raises `.ClientError` where it is refused."""
        verb = self._verbs.get(request.verb)
        return verb(request) if verb is not None else Reply(b"ERROR")

    def _get(self, request: Request) -> Reply:
        items: dict[bytes, Item] = {}
        store, touches = self.store, request.verb.startswith(b"gat")
        counting = self.prefixes.counting
        for key in request.keys:
            item = store.gat(key, request.exptime) if touches else store.get(key)
            if item is not None:
                items[key] = item
            if counting:
                self.prefixes.count(key, "get", *(("hit",) if item is not None else ()))
        return Reply(b"END", items)

    def _keep(self, request: Request) -> Reply:
        verb, (key, *_), value, flags, exptime, cas_unique, *_ = request
        self.prefixes.count(key, "set")
        compared = cas_unique if verb == b"cas" else 0
        return Reply(self.store.keep(verb, key, value, flags, exptime, compared)[0])

    def _count(self, request: Request) -> Reply:
        count = self.store.incr if request.verb == b"incr" else self.store.decr
        number = count(request.keys[0], request.delta)
        if number is None:
            return Reply(b"NOT_FOUND")
        return Reply(b"NUMBER", number=number)

    def _delete(self, request: Request) -> Reply:
        self.prefixes.count(request.keys[0], "del")
        return Reply(b"DELETED" if self.store.delete(request.keys[0]) else b"NOT_FOUND")

    def _touch(self, request: Request) -> Reply:
        touched = self.store.touch(request.keys[0], request.exptime)
        return Reply(b"TOUCHED" if touched else b"NOT_FOUND")

    def _flush_all(self, request: Request) -> Reply:
        self.store.flush_all(request.exptime)
        return Reply(b"OK")

    def _cache_memlimit(self, request: Request) -> Reply:
        megabytes = int(request.argument)
        if megabytes < _LEAST_MEGABYTES:
            return Reply(b"MEMLIMIT_TOO_SMALL", text=b"cannot set maxbytes to less than 8m")
        if megabytes > _MOST_MEGABYTES:
            return Reply(b"MEMLIMIT_ADJUST_FAILED", text=b"input value is megabytes not bytes")
        self.store.max_bytes = megabytes * _MEGABYTE
        return Reply(b"OK")

    def _verbosity(self, request: Request) -> Reply:
        self.verbosity = min(int(request.argument), 4)
        return Reply(b"OK")

    def _config(self, request: Request) -> Reply:
        if self.cluster is None or request.argument != b"get cluster":
            return Reply(b"ERROR")
        version, nodes = self.cluster
        return Reply(b"CONFIG", text=f"{version}\n{' '.join(nodes)}\n".encode())

    # -- stats

    def _stats(self, request: Request) -> Reply:
        words, store = request.argument.split(b" "), self.store
        if not words[0]:
            return _told(
                {
                    **self._facts(),
                    **store.counts,
                    "limit_maxbytes": store.max_bytes,
                    "bytes": store.bytes,
                    "curr_items": len(store),
                }
            )
        told = self._told.get(words[0])
        return told(words) if told is not None else Reply(b"ERROR")

    def _reset(self, words: list[bytes]) -> Reply:
        self.store.reset_counts()
        self.prefixes.reset()
        return Reply(b"RESET")

    def _detail(self, words: list[bytes]) -> Reply:
        what = words[1] if len(words) > 1 else b""
        if what == b"dump":
            return Reply(b"PREFIX", text=self.prefixes.lines())
        if what not in (b"on", b"off"):
            return Reply(b"CLIENT_ERROR", text=b"usage: stats detail on|off|dump")
        self.prefixes.counting = what == b"on"
        return Reply(b"OK")

    def _stats_settings(self, words: list[bytes]) -> Reply:
        return _told(
            {
                "maxbytes": self.store.max_bytes,
                **self._settings(),
                "verbosity": self.verbosity,
                "evictions": "on",
                "stat_key_prefix": ":",
                "detail_enabled": _yes(self.prefixes.counting),
                "cas_enabled": "yes",
                "auth_enabled_sasl": "no",
                "item_size_max": self.store.max_item_size,
                "flush_enabled": "yes",
                "track_sizes": _yes(self._counts_sizes),
            }
        )

    def _stats_items(self, words: list[bytes]) -> Reply:
        # There are no slab classes here: all items are in one.
        store, counts = self.store, self.store.counts
        if not len(store):
            return Reply(b"END")
        return _told(
            {
                "items:1:number": len(store),
                "items:1:age": max(0, store.now() - next(iter(store)).accessed),
                "items:1:mem_requested": store.bytes,
                "items:1:evicted": counts["evictions"],
                "items:1:expired_unfetched": counts["expired_unfetched"],
                "items:1:evicted_unfetched": counts["evicted_unfetched"],
            }
        )

    def _stats_slabs(self, words: list[bytes]) -> Reply:
        store, counts = self.store, self.store.counts
        facts: dict[str, object] = {}
        if len(store):
            facts = {"1:used_chunks": len(store)}
            for name in "get_hits cmd_set delete_hits incr_hits decr_hits cas_hits".split():
                facts[f"1:{name}"] = counts[name]
        return _told({**facts, "active_slabs": int(len(store) > 0), "total_malloced": store.bytes})

    def _stats_sizes(self, words: list[bytes]) -> Reply:
        if not self._counts_sizes:
            return _told({"sizes_status": "disabled"})
        classes = Counter(-(-entry.size // _SIZES) * _SIZES for entry in self.store)
        return _told({str(size): classes[size] for size in sorted(classes)})

    def _set_sizes(self, words: list[bytes]) -> Reply:
        self._counts_sizes = words[0] == b"sizes_enable"
        state = b"enabled" if self._counts_sizes else b"disabled"
        return Reply(b"STAT", text=b"sizes_status " + state)

    def _cachedump(self, words: list[bytes]) -> Reply:
        """Answers that nothing is kept there: which keys there are is told to nobody."""
        if len(words) < 3:
            return Reply(b"CLIENT_ERROR", text=b"bad command line")
        slab_class, limit = read_unsigned(words[1]), read_unsigned(words[2])
        if slab_class is None or limit is None:
            return Reply(b"CLIENT_ERROR", text=b"bad command line format")
        if slab_class >= _SLAB_CLASSES:
            return Reply(b"CLIENT_ERROR", text=b"Illegal slab id")
        return Reply(b"END")


def _told(facts: dict[str, object]) -> Reply:
    return Reply(b"END", stats={name: str(value) for name, value in facts.items()})


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
