"""Slots in the order in which they expire, and keys that are bound by order.

Knows deadlines and keys of slots. It must not know what carries them.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from .deadlines import NEVER
from .protocol import Slot

#: What stands in a lane that is empty, in place of a deque of 760 bytes. Nothing is put in it.
_NOTHING: deque[Slot] = deque()
#: So many slots may let others pass: each of them is looked at whenever the line is served.
MOST_ASIDE = 32


class SlotLane:
    """A queue of slots whose deadlines do not fall from first to last.

    They come in that order nearly always; a call that is tried again,
    behind newer ones, is put where it belongs.
    """

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots = _NOTHING

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    @property
    def first(self) -> Slot:
        return self._slots[0]

    @property
    def next_deadline(self) -> float:
        return self._slots[0].deadline if self._slots else NEVER

    @property
    def last_deadline(self) -> float:
        return self._slots[-1].deadline if self._slots else 0.0

    def add(self, slot: Slot) -> bool:
        """Adds ``slot``; returns True if it is the first to expire."""
        slots = self._slots
        if not slots:
            # (as cheap as an append, so that a lane at rest need not keep what it was in)
            self._slots = deque((slot,))
            return True
        if slot.deadline >= slots[-1].deadline:
            slots.append(slot)
        elif slot.deadline <= slots[0].deadline:
            # What a lost connection owed comes back from the last to the first.
            slots.appendleft(slot)
        else:
            index = len(slots)
            while slots[index - 1].deadline > slot.deadline:
                index -= 1
            slots.insert(index, slot)
        return slots[0] is slot

    def remove(self, slot: Slot) -> None:
        """Takes ``slot`` out, which is the first nearly always. It may have left before."""
        slots = self._slots
        if slots and slots[0] is slot:
            slots.popleft()
            if not slots:
                self._slots = _NOTHING
        elif slots and slot.deadline >= slots[0].deadline and slot in slots:
            slots.remove(slot)

    def remove_all(self, gone: list[Slot]) -> None:
        """Takes many slots out, in one pass: they may stand behind many others."""
        if len(gone) == 1:
            self.remove(gone[0])
        elif gone:
            leaving = set(gone)
            self._slots = deque(slot for slot in self._slots if slot not in leaving) or _NOTHING

    def pop(self) -> Slot:
        slot = self._slots.popleft()
        if not self._slots:
            self._slots = _NOTHING
        return slot

    def clear(self) -> list[Slot]:
        """Empties the lane and returns what was in it."""
        slots, self._slots = list(self._slots), _NOTHING
        return slots


class Line:
    """Slots that wait, served in the order in which they came.

    They expire in the order of their deadlines, which is another one: a
    call with a longer timeout of its own keeps its place.
    """

    __slots__ = ("_aside", "_lane", "_members", "_order", "_written")

    def __init__(self) -> None:
        self._lane = SlotLane()
        self._members: set[Slot] = set()
        #: May hold slots that have expired, until they come to the front.
        self._order: deque[Slot] = deque()
        #: Those that have let others pass, in their order: they stand before all others.
        self._aside: list[Slot] = []
        self._written = BoundKeys((), ())

    def __len__(self) -> int:
        return len(self._members)

    def holds_write_of(self, slot: Slot) -> bool:
        """True if a write of one of the keys waits here, which ``slot`` must not overtake."""
        written = self._written
        return bool(written) and any(key in written for key in slot.keys)

    def _enter(self, slot: Slot) -> None:
        self._members.add(slot)
        self._lane.add(slot)
        self._written.count(slot, 1)

    def _leave(self, slot: Slot) -> None:
        self._members.discard(slot)
        self._written.count(slot, -1)

    @property
    def first(self) -> Slot:
        order = self._order
        while order[0] not in self._members:
            order.popleft()
        return order[0]

    @property
    def next_deadline(self) -> float:
        return self._lane.next_deadline

    def add(self, slot: Slot, *, front: bool = False) -> None:
        if front:
            self._order.appendleft(slot)
        else:
            self._order.append(slot)
        self._enter(slot)

    def __iter__(self) -> Iterator[Slot]:
        members = self._members
        return (slot for slot in (*self._aside, *self._order) if slot in members)

    def bring_forward(self, slot: Slot) -> None:
        """Has ``slot`` be the next, if it waits here."""
        if slot in self._members and slot in self._order:
            self._order.remove(slot)
            self._order.appendleft(slot)

    def take(self, wanted: Callable[[Slot], bool]) -> list[Slot]:
        """Takes out all slots that are ``wanted``, wherever they stand."""
        taken = [slot for slot in self if wanted(slot)]
        for slot in taken:
            self._leave(slot)
        self._lane.remove_all(taken)
        return taken

    def pop(self) -> Slot:
        """Takes the slot out whose turn it is."""
        slot = self.first
        self._order.popleft()
        self._leave(slot)
        self._lane.remove(slot)
        return slot

    def step_aside(self) -> None:
        """Has the slot whose turn it is let the others pass, until `come_back`."""
        self._aside.append(self.first)
        self._order.popleft()

    def come_back(self) -> None:
        """Puts those that stepped aside back where they stood, before the others."""
        self._order.extendleft(reversed(self._aside))
        self._aside = []

    @property
    def goes_on(self) -> bool:
        """True while there is one that has not stepped aside; at most `MOST_ASIDE` do."""
        return len(self._members) > len(self._aside) < MOST_ASIDE

    def pop_due(self) -> Slot:
        """Takes the slot out that expires first; `extend` may put it back in its place."""
        slot = self._lane.pop()
        self._leave(slot)
        if len(self._order) > 2 * len(self._members) + 64:
            self._order = deque(one for one in self._order if one in self._members or one is slot)
        return slot

    def extend(self, slot: Slot, deadline: float) -> None:
        """Puts a slot back where it stood, with a later deadline."""
        slot.deadline = deadline
        self._enter(slot)

    def clear(self) -> list[Slot]:
        slots = list(self)
        self.__init__()  # type: ignore[misc]
        return slots


class BoundKeys(dict[bytes, int]):
    """Keys whose writes are unanswered on one connection, each with their number.

    A later call for such a key has to follow on the same connection, or
    it could overtake the write.
    """

    def __init__(self, slots: Iterable[Slot], silent: Iterable[bytes]) -> None:
        super().__init__()
        for slot in slots:
            self.count(slot, 1)
        for key in silent:
            self[key] = self.get(key, 0) + 1

    def count(self, slot: Slot, by: int) -> None:
        """Adds (1) or takes away (-1) the keys that ``slot`` writes or confirms."""
        for key in itertools.chain(slot.keys if slot.writes else (), slot.confirms):
            number = self.get(key, 0) + by
            if number > 0:
                self[key] = number
            else:
                self.pop(key, None)
