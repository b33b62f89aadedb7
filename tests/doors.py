"""A front door with a handler of the test's behind it, and clients of it on plain streams."""

import asyncio

from tornado_memcache.door import FrontDoor


class Door:
    """A front door with ``handler`` behind it, as a server that `connect` takes."""

    path = None
    host = "127.0.0.1"

    def __init__(self, handler):
        self.door = FrontDoor(handler, too_large=lambda key, flags, length: False)

    async def __aenter__(self):
        self.door.listen(0, self.host)
        (listening,) = self.door._sockets.values()
        self.port = listening.getsockname()[1]
        return self

    async def __aexit__(self, *error):
        await self.door.close()


async def connect(server):
    if server.path:
        return await asyncio.open_unix_connection(server.path)
    return await asyncio.open_connection(server.host, server.port)


async def leave(writer):
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass


async def exchange(server, data, ending=b"\r\n"):
    reader, writer = await connect(server)
    writer.write(data)
    answer = await asyncio.wait_for(reader.readuntil(ending), 5)
    await leave(writer)
    return answer
