"""The callers of a chaos run: what they ask, and in which style.

Knows the client's public face, boundaries, and keys that it alone writes.
It must not know what is done to servers and networks, nor what is right.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable
from typing import Any

from tornado_memcache import Client, ConnectionFailed, MemcacheError, boundary

from .chaos_commands import META, MISSING, Command, Several
from .chaos_groups import Group
from .chaos_values import ANSWERED, NEVER, OwnedKey, Step, make_value
from .chaos_witness import CALL, Call, Witness, clock
from .chaos_worlds import Judgement, World

#: An exptime that never comes, in seconds.
LONG = 10_000
#: Seconds between two deeds of one caller.
PAUSES = [0, 0, 0.01, 0.5, 2.0]
#: The sizes of values, and how often each is taken.
SIZES = ([0, 20, 100, 1000, 20_000, 100_000], [10, 40, 40, 8, 2, 1])


class Caller:
    """One of many. All that it does comes from its seed."""

    def __init__(self, witness: Witness, world: World, number: int, seed: str) -> None:
        self.witness = witness
        self.world = world
        self.rng = random.Random(seed)
        self.keys: list[OwnedKey] = []
        self._nonce = number * 10_000_000

    async def run(self, calls: int, pace: float) -> None:
        """Makes calls until all callers together have made ``calls``."""
        rng = self.rng
        deeds = [self.burst, self.in_groups, self.one_by_one, self.at_once, self.renewed]
        deeds += [self.of_others, self.of_servers, self.wanted]
        weights = [6, 6, 4, 3, 3, 3, 0.3, 3]
        while self.witness.calls < calls:
            CALL.set(None)
            try:
                await rng.choices(deeds, weights)[0]()
            except Exception:
                self.witness.violated("I8", f"a caller fell over: {traceback.format_exc()}")
            await asyncio.sleep(rng.choice(PAUSES) * pace)

    # -- making calls

    def begin(
        self,
        command: Any,
        style: str = "future",
        group: Group | None = None,
        then: Callable[[], Any] | None = None,
    ) -> Call:
        """Makes one call in ``style``, with a timeout of its own now and then."""
        rng, world = self.rng, self.world
        how: dict[str, Any] = {}
        length = world.request_timeout
        if rng.random() < 0.3 or isinstance(command, Wanted):  # (a factory has no usual length)
            how["timeout"] = length = world.request_timeout * rng.choice([0.05, 0.3, 1, 1.5, 3])
        last = float("inf") if group is None else group.deadline
        call = Call(self.witness, lambda: f"{command} ({style})", world.strict, length, last)
        CALL.set(call)
        if group is not None:
            group.calls[call] = None
        if style in ("callback", "boundary"):
            how["callback"] = self._callback(call, group, then)
            if style == "callback":
                how["fail_callback"] = rng.choice([call.failed, call.later(call.failed)])
        try:
            future = command.begin(world.client, **how)
        except Exception as error:
            self.witness.violated("I8", f"{call}: raised {error!r} at the call")
            call.tell("untold")
            return call
        if (future is None) != ("callback" in how):
            self.witness.violated("I1", f"{call}: {style} returned {future!r}")
        self._follow(call, style, future)
        return call

    def _callback(
        self, call: Call, group: Group | None, then: Callable[[], Any] | None
    ) -> Callable[[Any], Any]:
        if then is not None:

            def succeeded(result: Any) -> None:
                call.succeeded(result)
                then()

            return succeeded
        if group is not None and group.catches_oops() and self.rng.random() < 0.1:
            return group.raising(call)
        return self.rng.choice([call.succeeded, call.succeeded, call.later(call.succeeded)])

    def _follow(self, call: Call, style: str, future: Any) -> None:
        """Waits for the outcome in the way that ``style`` names."""
        call.future = future
        loop, delay = self.witness.loop, self.rng.random() * self.world.request_timeout
        if style in ("future", "cancel"):
            future.add_done_callback(call.future_done)
        elif style in ("unawaited", "alone"):
            self.witness.watch(call)
        elif style in ("task", "cancel task"):
            task = asyncio.ensure_future(_awaited(call, future))
            if style == "cancel task":
                call.cancelling = loop.call_later(delay, _cancel, task)
                task.add_done_callback(call.task_done)
        elif style == "wait_for":
            asyncio.ensure_future(_awaited(call, asyncio.wait_for(future, delay)))
        if style == "cancel":
            call.cancelling = loop.call_later(delay, _cancel, future)

    def give(
        self,
        judgement: Judgement,
        key: OwnedKey,
        command: Command,
        style: str,
        group: Group | None = None,
        then: Callable[[], Any] | None = None,
    ) -> Call:
        """Makes a call for a key of its own, to be judged when it has ended."""
        judgement.note(key)
        call = self.begin(command, style, group, then)
        judgement.add(key, command, call)
        return call

    # -- what to ask

    def key(self) -> OwnedKey:
        """Returns a key of its own, a new one now and then."""
        rng = self.rng
        self.keys = [key for key in self.keys if not key.retired]
        if len(self.keys) < 4:
            name = f"{self.world.name}-{rng.getrandbits(64):016x}"
            self.keys.append(OwnedKey(name, rng.choice([bytes, bytes, str, int])))
            self.keys[-1].known_at = clock()
            self.world.known[name] = None
            if len(self.world.known) > 500:
                del self.world.known[next(iter(self.world.known))]
        return rng.choice(self.keys)

    def value(self, key: str, kind: type) -> Any:
        """Returns a value that there was never before."""
        self._nonce += 1
        if kind is int:
            return self.rng.randrange(1 << 40)
        value = make_value(key, self._nonce, self.rng.choices(*SIZES)[0])
        return value.decode() if kind is str else value

    def command(self, key: str, kind: type) -> Command:
        """Returns a random command that fits what is stored under ``key``."""
        rng = self.rng
        verbs = ["get"] * 6 + ["set"] * 4
        verbs += ["gets", "gat", "gats", "add", "replace", "delete", "touch"]
        if kind is int:
            verbs += ["incr"] * 6 + ["decr"] * 2
        elif self.world.raw:
            verbs += ["append", "prepend"]
        verb = rng.choice(verbs)
        command = Command(verb, key, exptime=LONG if verb in ("gat", "gats", "touch") else 0)
        if verb in ("incr", "decr"):
            command.value = rng.randrange(1000)
        elif verb not in ("get", "gets", "gat", "gats", "delete", "touch"):
            command.value = self.value(key, kind)
            command.noreply = rng.random() < 0.1
            if verb != "append" and verb != "prepend" and not command.noreply:
                command.exptime = rng.choice([0, 0, 0, LONG])
                if verb == "set" and rng.random() < 0.03:
                    command.exptime = -1
        command.raw = self.world.raw and rng.random() < 0.15
        if command.raw and verb in ("delete", "incr", "decr", "touch"):
            command.noreply = rng.random() < 0.1
        if verb in META and not (command.raw or command.noreply):
            command.meta = rng.random() < 0.2
        if verb in ("get", "gat") and not (command.raw or command.meta) and rng.random() < 0.2:
            command.default = MISSING
        return command

    def commands(self, most: int) -> list[tuple[OwnedKey, Command]]:
        keys = [self.key() for _ in range(self.rng.choice([1, 1, 2, 3]))]
        chosen = [self.rng.choice(keys) for _ in range(self.rng.randrange(1, most + 1))]
        return [(key, self.command(key.name, key.kind)) for key in chosen]

    # -- the deeds

    async def burst(self) -> None:
        """Several calls without waiting, in the order of which the keys have to see them."""
        styles = ["future", "callback", "task", "wait_for", "cancel", "cancel task", "alone"]
        styles = self.rng.choices(styles, [8, 8, 3, 1, 1, 1, 0.5], k=8)
        judgement = Judgement(self.world)
        for (key, command), style in zip(self.commands(8), styles):
            self.give(judgement, key, command, style)
        await judgement.pass_when_ended()

    async def in_groups(self) -> None:
        """Several calls under boundaries: nested, once, with a budget, cancelled, shielded."""
        judgement = Judgement(self.world)
        group = Group(self.witness, self.rng, self.world.request_timeout)
        with group:
            if self.rng.random() < 0.25:
                self._chain(self.commands(5), group, judgement)
            else:
                self._fill(group, judgement, self.commands(8))
        await judgement.pass_when_ended()
        group.check()

    def _fill(
        self, group: Group, judgement: Judgement, todo: list[tuple[OwnedKey, Command]]
    ) -> None:
        rng = self.rng
        while todo:
            chance = rng.random()
            if chance < 0.12:
                part, todo = todo[:4], todo[4:]
                with Group(self.witness, rng, self.world.request_timeout, group) as inner:
                    self._fill(inner, judgement, part)
                continue
            key, command = todo.pop()
            if chance < 0.2:
                with boundary(None):
                    self.give(judgement, key, command, rng.choice(["callback", "future"]))
                continue
            style = rng.choice(["boundary", "boundary", "unawaited", "callback", "future"])
            self.give(judgement, key, command, style, group)

    def _chain(
        self, todo: list[tuple[OwnedKey, Command]], group: Group, judgement: Judgement
    ) -> None:
        """Makes each call in the callback of the one before."""
        if todo:
            (key, command), *rest = todo

            def go_on() -> None:
                self._chain(rest, group, judgement)

            self.give(judgement, key, command, "boundary", group, go_on)

    async def one_by_one(self) -> None:
        """Awaits call by call, in the body of a boundary or without."""
        rng = self.rng
        if rng.random() < 0.5:
            for key, command in self.commands(5):
                judgement = Judgement(self.world)
                call = self.give(judgement, key, command, "await")
                await _awaited(call, call.future)
                await judgement.pass_when_ended()
            return
        judgements = []
        group = Group(self.witness, rng, self.world.request_timeout, awaits=True)
        with group:
            for key, command in self.commands(5):
                judgements.append(Judgement(self.world))
                call = self.give(judgements[-1], key, command, "await", group)
                if call.future is not None:
                    call.tell("value", await call.future)
        for judgement in judgements:
            await judgement.pass_when_ended()
        group.check()

    async def at_once(self) -> None:
        """One call for several keys."""
        rng = self.rng
        verbs = ["get_multi", "gets_multi", "set_multi", "delete_multi"]
        verbs += ["meta_get_multi", "meta_delete_multi"]
        verb = rng.choice(verbs + ["request_many"] * self.world.raw)
        keys = {key.name: key for key in (self.key() for _ in range(rng.randrange(1, 12)))}
        commands = []
        for key in keys.values():
            if verb == "request_many":
                for _ in range(rng.choice([1, 1, 2])):
                    commands.append(self.command(key.name, key.kind))
                    commands[-1].raw = True
            elif verb == "set_multi":
                commands.append(Command("set", key.name, self.value(key.name, key.kind)))
            else:
                commands.append(Command(verb.split("_")[-2], key.name, meta="meta" in verb))
        judgement = Judgement(self.world)
        for key in keys.values():
            judgement.note(key)
        several = Several(verb, commands)
        call = self.begin(several, rng.choice(["future", "callback", "task", "cancel"]))
        for index, command in enumerate(commands):
            judgement.add(keys[command.key], command, call, several, index)
        await judgement.pass_when_ended()

    async def renewed(self) -> None:
        """gets, then cas: with what came, or with what has been overtaken."""
        rng = self.rng
        key = self.key()
        if key.kind is int:
            return
        seen: Any = None
        for verb in rng.choice([("gets", "cas"), ("gets", "set", "cas"), ("gats", "cas", "cas")]):
            command = Command(verb, key.name, exptime=LONG)
            if verb in ("set", "cas"):
                command.value = self.value(key.name, key.kind)
            if verb == "cas":
                command.expected, command.token = seen
            judgement = Judgement(self.world)
            call = self.give(judgement, key, command, rng.choice(["future", "callback", "task"]))
            await judgement.pass_when_ended()
            if key.retired or (verb.startswith("g") and call.ended != "value"):
                return
            if verb.startswith("g"):
                seen = call.result
                if seen[1] is None:
                    return

    async def of_others(self) -> None:
        """Keys that others write too, and keys of which somebody else is the owner."""
        rng, world = self.rng, self.world
        calls = []
        for _ in range(rng.randrange(1, 6)):
            if world.known and rng.random() < 0.5:
                command = Command(rng.choice(["get", "gets"]), rng.choice(list(world.known)))
            elif rng.random() < 0.2:
                command = self.command(rng.choice(world.counters), int)
            else:
                command = self.command(rng.choice(world.shared), bytes)
            style = rng.choice(["future", "callback", "task", "cancel", "wait_for", "alone"])
            calls.append((command, self.begin(command, style)))
        for command, call in calls:
            await call.told
            if not self.world.is_wrong_failure(call):
                self.world.check_whose(command.key, command.step(call.ended, call.result), call)

    async def wanted(self) -> None:
        """Values that many want, which one computes, or fails to; and invalidations of them."""
        rng, world = self.rng, self.world
        calls = []
        for _ in range(rng.randrange(1, 6)):
            key = rng.choice(world.wanted)
            command = Wanted(key, self) if rng.random() < 0.9 else Invalidate(key, rng)
            style = rng.choice(["future", "callback", "task", "cancel", "wait_for", "alone"])
            calls.append((command, self.begin(command, style)))
        for command, call in calls:
            await call.told
            if not world.is_wrong_failure(call) and isinstance(command, Wanted):
                known = ANSWERED if call.ended == "value" else NEVER
                world.check_whose(command.key, Step("get", None, None, known, call.result), call)

    async def of_servers(self) -> None:
        """What is asked of every server; flush_all only where nobody counts on his values."""
        verbs = ["version", "stats"] + ["flush_all"] * (not self.world.strict)
        call = self.begin(_Ask(self.rng.choice(verbs)), self.rng.choice(["future", "callback"]))
        await call.told
        self.world.is_wrong_failure(call)


class _Ask:
    """A command without a key."""

    def __init__(self, verb: str) -> None:
        self._verb = verb

    def __str__(self) -> str:
        return self._verb

    def begin(self, client: Client, **how: Any) -> Any:
        return getattr(client, self._verb)(**how)


class Wanted:
    """One get_or_set; its factory is of a random kind, and fails now and then."""

    def __init__(self, key: str, caller: Caller) -> None:
        self.key = key
        self._caller = caller

    def __str__(self) -> str:
        return f"get_or_set {self.key}"

    def begin(self, client: Client, **how: Any) -> Any:
        rng = self._caller.rng
        times = {"stale": rng.choice([None, 5]), "early": rng.choice([None, LONG - 1])}
        lock_timeout = self._caller.world.request_timeout * rng.choice([0.5, 2, 20])
        factory = rng.choice([self.plain, self.coroutine, self.by_callback])
        return client.get_or_set(self.key, factory, LONG, lock_timeout=lock_timeout, **times, **how)

    def plain(self) -> Any:
        if self._caller.rng.random() < 0.1:
            raise ConnectionFailed("a factory fails, as a database does")
        return self._caller.value(self.key, bytes)

    async def coroutine(self) -> Any:
        rng = self._caller.rng
        await asyncio.sleep(rng.random() * rng.choice([0, 0.01, 0.5]))
        return self.plain()

    def by_callback(self, callback: Any) -> None:
        if self._caller.rng.random() < 0.95:  # (else it never says anything)
            value = self.plain()
            asyncio.get_running_loop().call_soon(callback, value)


class Invalidate:
    """One invalidate."""

    def __init__(self, key: str, rng: random.Random) -> None:
        self.key = key
        self._stale_for = rng.choice([None, 5])

    def __str__(self) -> str:
        return f"invalidate {self.key}"

    def begin(self, client: Client, **how: Any) -> Any:
        return client.invalidate(self.key, self._stale_for, **how)


async def _awaited(call: Call, future: Any) -> None:
    try:
        result = await future
    except asyncio.CancelledError:
        call.tell("cancelled")
    except MemcacheError as error:
        call.tell("failed", error)
    except asyncio.TimeoutError:
        call.tell("cancelled")  # (wait_for's, which has cancelled it)
    else:
        call.tell("value", result)


def _cancel(one: Any) -> None:
    one.cancel()
