"""A floor: a bare asyncio.Protocol that gathers the gets of a tick, 100 keys a line.

As `bare_pipelined`: it checks no key, knows no failure, no deadline and no
cancellation, and trusts the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from . import bare_pipelined

KEYS_A_LINE = 100


class Replies(asyncio.Protocol):
    """What is owed on one connection: for each line the Futures of its keys, or one."""

    def __init__(self) -> None:
        self.owed: deque[Any] = deque()
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while at < end:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            if data.startswith(b"VALUE ", at):
                _, key, _, size = data[at:line].split(b" ")
                first = line + 2
                last = first + int(size)
                if last + 2 > end:
                    break
                self.owed[0].pop(key).set_result(data[first:last])
                at = last + 2
            else:
                owed = self.owed.popleft()
                if owed.__class__ is not dict:
                    owed.set_result(data.startswith(b"STORED", at))
                else:
                    for future in owed.values():
                        future.set_result(None)
                at = line + 2
        self._rest = data[at:]


class Client(bare_pipelined.Client):
    title = "bare Protocol, batched"
    protocol = Replies
    kinds = frozenset({"gets", "mix", "burst", "multi", "sets"})

    def __init__(self) -> None:
        self._batch: dict[bytes, Any] = {}

    def fetch(self, key: bytes) -> Any:
        batch = self._batch
        if not batch:
            self._loop.call_soon(self._flush)
        future = batch.get(key)
        if future is None:
            future = batch[key] = self._loop.create_future()
        return future

    def _flush(self) -> None:
        batch, self._batch = self._batch, {}
        keys = list(batch)
        for first in range(0, len(keys), KEYS_A_LINE):
            part = keys[first : first + KEYS_A_LINE]
            self._replies.owed.append({key: batch[key] for key in part})
            self._replies.transport.write(b"get " + b" ".join(part) + b"\r\n")

    async def fetch_many(self, keys: list[bytes]) -> dict[bytes, Any]:
        found = await asyncio.gather(*map(self.fetch, keys))
        return {key: value for key, value in zip(keys, found) if value is not None}
