"""Whether what concurrent callers saw of one key can have happened at all.

Knows what memcached does to one number, and that each operation takes effect
at one moment between its invocation and its return (linearizability). Pure:
it must not know a client or a clock. The search is that of Wing and Gong with
the states it has seen kept (Lowe), made quick by one fact: no value is ever
written twice, so a state that somebody still has to see must not be left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

#: What is written are multiples of this; incr adds less than it in all, so that
#: every number tells which write it comes from.
SPACE = 1 << 20
#: The search is given up after so many steps.
MOST_STEPS = 2_000_000

NEVER = float("inf")


class Undecided(Exception):
    """The search took too long."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation on one key.

    ``verb`` is get, set, add, replace, cas, delete, incr, or gone (the server
    lost everything). ``value`` is what it writes, or adds; ``expected`` what
    a cas goes by. ``answer`` is as the client tells it. If it is not
    ``certain`` nobody knows whether it took effect; if so, by ``returned``.
    """

    verb: str
    invoked: float
    returned: float
    value: int = 0
    answer: Any = True
    expected: int | None = None
    certain: bool = True

    def __str__(self) -> str:
        value = "" if self.verb in ("get", "delete", "gone") else f" {self.value}"
        given = f" for {self.expected}" if self.verb == "cas" else ""
        answer = self.answer if self.certain else "unknown"
        times = f"[{self.invoked:.6f}, {self.returned:.6f}]"
        return f"{self.verb}{value}{given} -> {answer} {times}"

    def effect(self, state: int | None) -> tuple[bool, int | None]:
        """Returns whether it can happen in ``state`` with its answer, and the state after it."""
        verb, value, there = self.verb, self.value, state is not None
        if verb in ("set", "gone"):
            return True, value if verb == "set" else None
        if verb == "get":
            return state == self.answer, state
        if verb == "incr":
            after = state + value if state is not None else None
            return (there if not self.certain else after == self.answer), after
        if verb == "delete":
            happens, after = there, None
        elif verb == "add":
            happens, after = not there, value
        elif verb == "replace":
            happens, after = there, value
        else:
            happens, after = state is not None and state == self.expected, value
        if not self.certain or self.answer is True:
            return happens, after
        if verb == "cas":
            # None: it is not there. False: it is another one.
            return there is (self.answer is False) and not happens, state
        return not happens, state

    def needs(self) -> int | None:
        """Returns the one state in which it can happen, if there is but one and it is a value."""
        if not self.certain:
            return None
        if self.verb == "get":
            number: int | None = self.answer
            return number
        if self.verb == "incr" and self.answer is not None:
            return int(self.answer) - self.value
        return self.expected if self.verb == "cas" and self.answer is True else None


@dataclass
class Verdict:
    """``order`` is one in which it can have happened, or None; ``stuck`` tells how far one gets."""

    order: list[Operation] | None
    stuck: str = ""
    steps: int = 0

    def __bool__(self) -> bool:
        return self.order is not None


def check(history: Iterable[Operation], most_steps: int = MOST_STEPS) -> Verdict:
    """Returns whether ``history``, of one key that is not there at first, is linearizable."""
    history = list(history)
    operations = sorted(map(_settled_by(history), history), key=lambda one: one.invoked)
    written = Counter(
        one.value for one in operations if one.verb in ("set", "add", "replace", "cas")
    )
    if any(count > 1 or value % SPACE for value, count in written.items()):
        raise ValueError("written values have to be different multiples of SPACE")
    return _Search(operations, most_steps).run()


def _settled_by(history: list[Operation]) -> Any:
    """Returns a function that makes an uncertain write certain if anybody has seen its value."""
    seen: dict[int, float] = {}
    for one in history:
        number = one.needs()
        if number is not None:
            base = number - number % SPACE
            seen[base] = min(seen.get(base, NEVER), one.returned)

    def settled(one: Operation) -> Operation:
        if one.certain or one.verb not in ("set", "add", "replace", "cas"):
            return one
        if one.value not in seen:
            return one
        returned = min(one.returned, seen[one.value])
        return replace(one, certain=True, answer=True, returned=returned)

    return settled


@dataclass
class _Node:
    """Where a search stands: what has happened, and what came of it."""

    #: Operations before ``first`` are done with; ``done`` has a bit for each from there on.
    first: int
    done: int
    state: int | None
    #: The latest invocation of what has happened: what had to end before has not happened.
    latest: float
    #: The operation that led here.
    by: int = -1
    choices: Iterator[int] = field(default_factory=lambda: iter(()))


class _Search:
    def __init__(self, operations: list[Operation], most_steps: int) -> None:
        self._operations = operations
        self._most_steps = most_steps
        self._certain = sum(one.certain for one in operations)
        self._needed = Counter(one.needs() for one in operations)
        self._steps = 0

    def run(self) -> Verdict:
        path = [_Node(0, 0, None, -NEVER)]
        path[0].choices = self._choices(path[0])
        seen, left, deepest = set(), self._certain, (self._certain + 1, path[0])
        while left:
            node = path[-1]
            if left < deepest[0]:
                deepest = (left, node)
            index = next(node.choices, -1)
            if index < 0:
                if len(path) == 1:
                    return Verdict(None, self._stuck(*deepest), self._steps)
                path.pop()
                left += self._take_back(node.by)
                continue
            after = self._after(node, index)
            key = (after.first, after.done, after.state)
            if key in seen:
                continue
            seen.add(key)
            self._steps += 1
            if self._steps > self._most_steps:
                raise Undecided(f"after {self._steps} steps; {self._stuck(*deepest)}")
            one = self._operations[index]
            left -= one.certain
            self._needed[one.needs()] -= 1
            after.choices = self._choices(after)
            path.append(after)
        order = [self._operations[node.by] for node in path[1:]]
        return Verdict(order, steps=self._steps)

    def _take_back(self, index: int) -> int:
        one = self._operations[index]
        self._needed[one.needs()] += 1
        return int(one.certain)

    def _after(self, node: _Node, index: int) -> _Node:
        """Returns where the search stands once the operation at ``index`` has happened."""
        operations, one = self._operations, self._operations[index]
        first, done = node.first, node.done | 1 << (index - node.first)
        latest = max(node.latest, one.invoked)
        if latest > node.latest:
            # What may have happened, but not as late as this, has not happened.
            for place, other in enumerate(operations[first : index + 1], first):
                if not other.certain and other.returned < latest:
                    done |= 1 << (place - first)
        while done & 1:
            first, done = first + 1, done >> 1
        return _Node(first, done, one.effect(node.state)[1], latest, index)

    def _open(self, node: _Node) -> Iterator[int]:
        """Yields the operations that can be the next one, as far as time goes."""
        horizon, done, operations = NEVER, node.done, self._operations
        for index in range(node.first, len(operations)):
            one = operations[index]
            if one.invoked > horizon:
                return
            if not done >> (index - node.first) & 1:
                if one.certain:
                    horizon = min(horizon, one.returned)
                    yield index
                elif one.returned >= node.latest:
                    yield index

    def _choices(self, node: _Node) -> Iterator[int]:
        """Yields what may be the next one, the likely ones first."""
        state, idle, certain, others = node.state, [], [], []
        over = NEVER
        for index in self._open(node):
            one = self._operations[index]
            if not one.certain:
                over = min(over, one.returned)
            happens, after = one.effect(state)
            if not happens:
                continue
            if one.certain and after == state and one.verb != "gone":
                if one.invoked <= over:
                    # It never changes anything: if it can happen later, it can now.
                    return iter((index,))
                idle.append(index)  # (but then something else cannot have happened)
                continue
            # Nobody may need the state any more that this one ends.
            needed = self._needed[state] if state is not None else 0
            if needed - (one.needs() == state and state is not None) > 0:
                continue
            (certain if one.certain else others).append(index)
        operations = self._operations
        certain.sort(key=lambda index: operations[index].returned)
        return iter(idle + certain + others)

    def _stuck(self, left: int, node: _Node) -> str:
        window = "".join(f"\n    {self._operations[index]}" for index in self._open(node))
        return (
            f"{self._certain - left} of {self._certain} fit; then the value is {node.state}, "
            f"and the next is one of:{window}"
        )
