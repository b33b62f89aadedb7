"""How often the keys of each prefix are asked for (``stats detail``).

A prefix is what stands before the first colon of a key. This file knows
nothing else.
"""

#: At most so many prefixes are counted: clients choose their keys.
MOST = 10_000
_COUNTED = ("get", "hit", "set", "del")


class Prefixes:
    """The counts, which begin when ``counting`` is set."""

    def __init__(self) -> None:
        self.counting = False
        self._counts: dict[bytes, dict[str, int]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._counts)}>"

    def count(self, key: bytes, *what: str) -> None:
        """Counts a get, a hit, a set or a del of ``key``."""
        prefix, colon, _ = key.partition(b":")
        if not (self.counting and colon):
            return
        counts = self._counts.get(prefix)
        if counts is None:
            if len(self._counts) >= MOST:
                return
            counts = self._counts[prefix] = dict.fromkeys(_COUNTED, 0)
        for one in what:
            counts[one] += 1

    def reset(self) -> None:
        """Forgets what was counted."""
        self._counts.clear()

    def lines(self) -> bytes:
        """Returns a line for each prefix: ``<prefix> get <n> hit <n> set <n> del <n>``."""
        return b"\n".join(
            prefix + "".join(f" {what} {number}" for what, number in counts.items()).encode()
            for prefix, counts in self._counts.items()
        )
