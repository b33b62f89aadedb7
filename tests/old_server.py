"""A server without meta commands: a real memcached behind a relay that says it is older.

Knows bytes, and the two places that tell: the version, and the answer to a
meta command, which a server of that age does not know. A block that was sent
with one would be taken for commands, as there; the relay notes it. It must
not know the package.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

#: The verbs that a memcached before 1.6 answers with ERROR.
_META = re.compile(rb"(?:^|\r\n)(m[gsdane]) ")


class OldServer:
    """The relay; an async context manager. ``meta`` has the meta verbs that came, and came over."""

    def __init__(self, target: Any, version: bytes = b"1.5.22") -> None:
        self._target = target
        self._version = version
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.meta: list[bytes] = []
        self.address = ""

    async def __aenter__(self) -> OldServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, over = await asyncio.open_connection(self._target.host, self._target.port)
        self._writers += [writer, over]
        for source, target, look in ((reader, over, self._asked), (there, writer, self._answered)):
            task = asyncio.ensure_future(self._relay(source, target, look))
            self._tasks.add(task)

    async def _relay(self, source: asyncio.StreamReader, target: Any, look: Any) -> None:
        try:
            while data := await source.read(65536):
                target.write(look(data))
        except OSError:
            return
        finally:
            target.close()

    def _asked(self, data: bytes) -> bytes:
        self.meta += _META.findall(data)
        return data

    def _answered(self, data: bytes) -> bytes:
        return re.sub(rb"VERSION [^\r]*", b"VERSION " + self._version, data)
