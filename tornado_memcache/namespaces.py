"""All of a client's commands under a name that one step makes unreachable.

Knows that what is kept under a namespace has its generation's word in the
key, and how a call waits until that word is known. It must not know what a
command does, nor how the word is asked for.
"""

import asyncio
import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, NamedTuple

from .arguments import MAX_KEY_LENGTH, check_seconds, key_bytes
from .cluster import Cluster
from .commands import Commands
from .computations import Computations
from .deadlines import clock
from .errors import (
    ClientClosed,
    ConnectionFailed,
    InvalidKey,
    InvalidRequest,
    MemcacheError,
    SerializationError,
    ServerDead,
    Timeout,
    shown,
)
from .generations import WORD_BYTES, Generation, fresh_word
from .pool import Pool
from .protocol import Request, as_outcome, fail
from .settings import Settings
from .stampede import Stampede
from .values import Values

if TYPE_CHECKING:
    _Commands = Stampede
else:
    _Commands = object  # (each command is put into `Namespace` below)

#: What a client can do, and a namespace cannot.
WITHHELD = frozenset({"flush_all", "stats", "version", "meta_noop", "request", "request_many"})
#: So many namespaces are remembered when nobody holds them, the last ones used.
SPACES_KEPT = 1000
#: So many checked keys are kept for each, as they are on the wire.
KEYS_KEPT = 64
#: Stands for a generation's word that is not known.
_UNKNOWN = b"?" * WORD_BYTES


class Home(NamedTuple):
    """What a namespace shares with its client."""

    cluster: Cluster
    settings: Settings
    values: Values
    prefix: bytes
    computations: Computations


class _Bare(Values):
    """The value format of a client, to which a key is what it is without the word.

    It may be asked to make the bytes of a value before the word is known.
    """

    def __init__(self, values: Values, name: int, prefix: int) -> None:
        self.raw_flags = values.raw_flags
        self._whole, self._name, self._prefix = values, name, prefix

    def key(self, wire: bytes) -> bytes:
        return wire[: self._name] + wire[self._prefix :]

    def encode(self, wire: bytes, value: Any, compress: bool = True) -> tuple[bytes, int]:
        return self._whole.encode(self.key(wire), value, compress)

    def decode(self, wire: bytes, data: bytes, flags: int) -> Any:
        return self._whole.decode(self.key(wire), data, flags)


class View(Stampede):
    """The commands of a client under the generation ``word`` of a namespace."""

    migration = None

    def __init__(self, home: Home, name: bytes, word: bytes) -> None:
        self._cluster, self._settings, values, _, self.computations = home
        self._prefix, self._wires = b"%b:%b:" % (name, word), {}
        self._values = self._bare = _Bare(values, len(name) + 1, len(self._prefix))
        self._decode, self._raw_flags = self._bare.decode, values.raw_flags

    def _remember(self, key: Any, wire: bytes) -> None:
        if len(self._wires) >= KEYS_KEPT:
            self._wires.clear()
        self._wires[key] = wire


class Space:
    """What a client knows of one namespace: its generation, and the view under that."""

    def __init__(self, home: Home, name: bytes) -> None:
        self.home = home
        self.generation = Generation(home.cluster, home.settings, name)
        self._word: bytes | None = None
        self._view: View | None = None

    def view(self, word: bytes) -> View:
        """Returns the view under ``word``, the same as long as that is the generation."""
        if self._view is None or word != self._word:
            self._word, self._view = word, View(self.home, self.generation.name, word)
        return self._view


class Spaces:
    """The namespaces of one client: those that somebody holds, and the last ones used."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._held: weakref.WeakValueDictionary[bytes, Space] = weakref.WeakValueDictionary()
        self._last: dict[bytes, Space] = {}

    def space(self, name: object) -> Space:
        """Returns the one `Space` of ``name``, checked as a key is."""
        wire = _checked_name(name, self.home.prefix)
        space = self._last.pop(wire, None) or self._held.get(wire)
        if space is None:
            space = self._held[wire] = Space(self.home, wire)
        self._last[wire] = space
        if len(self._last) > SPACES_KEPT:
            del self._last[next(iter(self._last))]
        return space


def _checked_name(name: object, prefix: bytes) -> bytes:
    try:
        wire = key_bytes(name, prefix)
    except (InvalidKey, TypeError) as error:
        raise type(error)(f"name of a namespace: {error}") from None
    if len(wire) + WORD_BYTES + 2 >= MAX_KEY_LENGTH:
        raise InvalidKey(
            f"name of a namespace: {shown(wire)} has {len(wire)} bytes and leaves no room for a "
            f"key: memcached allows {MAX_KEY_LENGTH}, and {WORD_BYTES + 2} are the generation's"
        )
    return wire


def checked_age(age: Any) -> float:
    """Returns a ``generation_age``: a length in seconds, or 0."""
    if type(age) in (int, float) and age == 0:
        return 0.0
    try:
        return check_seconds("generation_age", age)
    except InvalidRequest:
        raise InvalidRequest("generation_age must be 0, or a finite number of seconds") from None


class Namespace(_Commands):
    """The commands of a client under a name; `invalidate` makes all of it unreachable.

    `.Client.namespace` makes it. It has every command that is about keys
    (not ``flush_all``, ``stats`` and ``version``, which are about
    servers), in both styles, with the arguments and the outcomes that they
    have on the client.

    A key goes out as ``name:word:key``, where the word, of 12 bytes, is
    the namespace's generation. The servers keep it under
    ``name:generation``; it is asked for when a call needs it and it was
    not asked for within the last ``generation_age`` seconds. Such a call
    waits for it, within its own deadline, and fails as that asking does.
    """

    def __init__(self, space: Space, age: float) -> None:
        self._space = space
        self.generation_age = age
        name = space.generation.name[len(space.home.prefix) :]
        self.name = name.decode("utf-8", "backslashreplace")

    def invalidate(self, *key: Any, **how: Any) -> "asyncio.Future[bool]":
        """Makes everything that is kept under the namespace unreachable, in one step.

        Outcome: True. Once it is there, no call of this client that is
        made afterwards finds anything of before; nor does any of another
        process that is made more than its ``generation_age`` later. What
        was kept leaves the servers when it expires or is evicted. When it
        fails with ``maybe_applied`` it may have taken effect. Takes
        ``timeout``, ``callback`` and ``fail_callback`` (`How`).

        With a ``key``, and perhaps ``stale_for``, it is `Client.invalidate`
        of that one alone.
        """
        if key or "key" in how:
            return self._take("invalidate", key, how)  # type: ignore[no-any-return]
        home, generation = self._space.home, self._space.generation
        home.cluster.ready()
        view = View(home, generation.name, _UNKNOWN)
        future = view._submit(*generation.renewal(), how)
        generation.forget()
        return future

    def _take(self, command: str, given: Any, how: Any) -> Any:
        word = self._space.generation.known(self.generation_age)
        if word is not None:
            return getattr(self._space.view(word), command)(*given, **how)
        given, how = _frozen(given), {name: _copied(name, one) for name, one in how.items()}
        checking = _Checking(self._space)
        try:
            return getattr(checking, command)(*given, **how)  # (where no key is asked for)
        except _Begins as begins:
            call = begins
        waiter = call.waiter
        if waiter is not None:
            again = functools.partial(_again, copy_context(), command, given, how)
            age = self.generation_age
            waiting = waiter.work = _Waiting(self._space, age, call, checking.encoded, again)
            self._space.generation.ask(waiting, age)
        return call.future

    if not TYPE_CHECKING:  # (whose eyes it would close to every name that there is not)

        def __getattr__(self, name: str) -> Any:
            if name in WITHHELD:
                raise AttributeError(f"a Namespace has no {name}(): it belongs to the client")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Namespace {shown(self.name)} {self._space.generation!r}>"


def _under(command: Callable[..., Any]) -> Callable[..., Any]:
    name = command.__name__

    @functools.wraps(command)
    def under(self: Namespace, *given: Any, **how: Any) -> Any:
        return self._take(name, given, how)

    return under


for _name, _command in inspect.getmembers(Stampede, inspect.isfunction):
    if not _name.startswith("_") and _name not in WITHHELD and _name not in vars(Namespace):
        setattr(Namespace, _name, _under(_command))


# -- a call whose generation is not known yet


class _Begins(BaseException):
    """Leaves a command where its call begins: everything that it was given has been checked."""

    def __init__(self, waiter: Any, future: Any, asked: str, computes: bool = False) -> None:
        self.waiter, self.future, self.asked = waiter, future, asked
        #: True if it comes to something without the word, too.
        self.computes = computes


class _Checking(View):
    """Takes a command as far as the begin of its call, which then waits for the word."""

    get = Commands.get

    def __init__(self, space: Space) -> None:
        super().__init__(space.home, space.generation.name, _UNKNOWN)
        self._located = False
        #: What values have come to. They are the caller's, who may change them.
        self.encoded: list[tuple[bytes, int]] = []

    def _locate(self, key: Any, *checked: Any) -> tuple[bytes, Pool]:
        self._located = True
        return super()._locate(key, *checked)

    def _encode(self, wire: bytes, value: Any, compress: bool = True) -> tuple[bytes, int]:
        self.encoded.append(super()._encode(wire, value, compress))
        return self.encoded[-1]

    def _begin(
        self,
        default: Any = None,
        asked: Request | bytes | None = None,
        observed: Any = None,
        /,
        **how: Any,
    ) -> Any:
        if not self._located:
            return super()._begin(default, asked, observed, **how)
        if how.get("timeout") is None:
            how["timeout"] = self._settings.request_timeout  # (for the asking and the call)
        begun = super()._begin(default, asked, observed, **how)
        told = ""
        if isinstance(asked, Request):
            told = asked._replace(keys=tuple(map(self._bare.key, asked.keys))).asked()
        raise _Begins(*begun, told)

    def _call(self, wire: bytes, *how: Any) -> Any:
        told = f"get_or_set {shown(self._bare.key(wire))}"
        raise _Begins(*super()._call(wire, *how), told, computes=True)

    def _is_classic(self, pool: Pool) -> bool:
        return False


class _Resumed(View):
    """Goes on with a call that was begun, as ``waiter``; ``pool`` is whom to ask, if not all."""

    get = Commands.get

    def __init__(
        self,
        space: Space,
        word: bytes,
        waiter: Any,
        encoded: Iterable[tuple[bytes, int]] = (),
        pool: Pool | None = None,
    ) -> None:
        super().__init__(space.home, space.generation.name, word)
        self._waiter = waiter
        self._encoded = iter(encoded)
        self._pool = pool
        self._goes_on = False

    def _locate(self, key: Any, *checked: Any) -> tuple[bytes, Pool]:
        wire, pool = super()._locate(key, *checked)
        return wire, self._pool or pool

    def _encode(self, wire: bytes, value: Any, compress: bool = True) -> tuple[bytes, int]:
        done = next(self._encoded, None)
        return super()._encode(wire, value, compress) if done is None else done

    def _begin(
        self,
        default: Any = None,
        asked: Request | bytes | None = None,
        observed: Any = None,
        /,
        **how: Any,
    ) -> Any:
        if self._goes_on:  # (what a command asks for by the way)
            return super()._begin(default, asked, observed, **how)
        self._goes_on = True
        return self._waiter, None

    def _call(self, wire: bytes, *how: Any) -> Any:
        self._goes_on = True
        return self._waiter, None

    def _is_classic(self, pool: Pool) -> bool:
        return self._goes_on and super()._is_classic(pool)


class _Waiting:
    """A call that waits for the word, to be made ``again`` under it: that takes a view."""

    __slots__ = (
        "_again",
        "_age",
        "_asked",
        "_computes",
        "_encoded",
        "_space",
        "_waiter",
        "own_deadline",
    )

    def __init__(
        self,
        space: Space,
        age: float,
        call: "_Begins",
        encoded: list[tuple[bytes, int]],
        again: Callable[[View], Any],
    ) -> None:
        self._space, self._age = space, age
        self._waiter, self._asked, self._computes = call.waiter, call.asked, call.computes
        self._encoded = encoded
        self._again = again
        #: `get_or_set` has none, unless it was given one: then it is that of the asking.
        self.own_deadline: float = call.waiter.own_deadline or clock() + (
            space.home.settings.request_timeout
        )

    def go(self, word: bytes) -> None:
        self._go(_Resumed(self._space, word, self._waiter, self._encoded))

    def _go(self, view: View) -> None:
        if self._waiter.done():
            return
        try:
            self._again(view)
        except Exception as error:  # (a ring is a user's code)
            fail(self._waiter, as_outcome(error, self._asked))

    def fail(self, error: MemcacheError) -> None:
        home = self._space.home
        missing = isinstance(error, ServerDead) and home.settings.on_dead == "miss"
        away = not isinstance(error, (ClientClosed, SerializationError))
        if missing or (self._computes and away):
            # What reads is a miss then, what computes does, and all else fails: that server's
            # pool knows which. What might be stored nevertheless nobody finds.
            # (What many want is computed once nevertheless.)
            generation = self._space.generation
            word = generation.alone(self._age) if self._computes else fresh_word()
            pool = home.cluster.home_of(generation.key)
            self._go(_Resumed(self._space, word, self._waiter, self._encoded, pool))
        else:
            fail(self._waiter, self._told(error))

    def _told(self, error: MemcacheError) -> MemcacheError:
        asked = f"{self._asked}, whose namespace is {shown(self._space.generation.name)}"
        if isinstance(error, (ConnectionFailed, Timeout)):
            return error.of(asked, False)
        return error.twin()

    def expire_waiter(self, waiter: Any) -> None:
        """The call's own deadline has come."""
        fail(waiter, self._told(self._space.generation.failure()))
        self._space.generation.leave(self)

    def waiter_left(self, waiter: Any) -> None:
        """The call was cancelled."""
        self._space.generation.leave(self)


def _again(context: Context, command: str, given: Any, how: Any, view: View) -> None:
    """Calls a command in the context of whoever called it."""
    context.run(getattr(view, command), *given, **how)


def _frozen(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_copied("key", given[0]), *given[1:]) if given else given


def _copied(name: str, given: Any) -> Any:
    """Returns what the caller cannot change while his call waits: keys, as they are now."""
    if name not in ("key", "keys", "mapping"):
        return given
    if isinstance(given, (bytearray, memoryview)):
        return bytes(given)
    if type(given) is tuple:
        return tuple(_copied(name, one) for one in given)
    if isinstance(given, Mapping):
        return dict(given.items())
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return list(given)
    return given
