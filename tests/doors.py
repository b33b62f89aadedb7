"""A front door with a handler of the test's behind it, and clients of it on plain streams."""

import asyncio
import socket

from tornado_memcache.door import FrontDoor, listen_on


class Door:
    """A front door with ``handler`` behind it, as a server that `connect` takes."""

    path = None
    host = "127.0.0.1"

    def __init__(self, handler, **options):
        options.setdefault("too_large", lambda key, flags, length: False)
        self.door = FrontDoor(handler, **options)

    async def __aenter__(self):
        self.door.add_socket(listen_on(socket.AF_INET, (self.host, 0)))
        self.port = self.door.port
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
