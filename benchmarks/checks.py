"""What a client has to give back right before it is timed.

Knows an adapter: that what it stores comes back byte for byte, that a miss
is one, and that every value of the workload is there. It must not know how
fast anything is.
"""

from __future__ import annotations

import inspect
from typing import Any

from .clients import Adapter
from .drive import Wrong, refused, wrong
from .workloads import Workload, names, value_of

#: Values that look like something else on the wire.
AWKWARD = [
    bytes(range(256)),
    b"",
    b"\r\n",
    b"\r\nEND\r\n",
    b"END\r\n",
    b"VALUE key:000000 0 3\r\nabc\r\nEND\r\n",
    bytes(range(255, -1, -1)) * 300,
]


async def answer(outcome: Any) -> Any:
    """Returns an outcome, whether it has to be awaited or not."""
    return await outcome if inspect.isawaitable(outcome) else outcome


def native(client: Adapter, name: str) -> Any:
    """Returns a key as the client takes it."""
    return name.encode() if client.bytes_keys else name


async def value(client: Adapter, key: Any) -> bytes | None:
    got = await answer(client.fetch(key))
    return got.value if client.items and got is not None else got


async def store(client: Adapter, key: Any, value: bytes) -> None:
    if (outcome := await answer(client.store(key, value))) != client.stored:
        raise refused(key, outcome)


async def check(client: Adapter, workload: Workload) -> None:
    """Stores the values of a workload and reads them again; `Wrong` if any is not right."""
    missing = native(client, "no:such:key")
    if (got := await value(client, missing)) is not None:
        raise Wrong(f"a miss gave {got!r}")
    for number, want in enumerate(AWKWARD):
        key = native(client, f"awkward:{number}")
        await store(client, key, want)
        if (got := await value(client, key)) != want:
            raise wrong(key, got, want)
    keys, wants = [], []
    for name in names(workload):
        keys.append(native(client, name))
        wants.append(value_of(name, workload.size))
        await store(client, keys[-1], wants[-1])
    for key, want in zip(keys, wants):
        if (got := await value(client, key)) != want:
            raise wrong(key, got, want)
    if "multi" in client.kinds:
        some = keys[:10]
        found = client.values(await answer(client.fetch_many([*some, missing])), [*some, missing])
        if found != wants[:10]:
            raise Wrong("a get_multi with a miss brought other values")
