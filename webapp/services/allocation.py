"""Which waiting run gets which devices of one host: the decision alone, over plain values.

Runs are looked at oldest first. Each wants slots, one a device, and a slot can be filled by devices of
its kind with enough memory. Slots are matched to free devices one run after another, each augmenting
the matching of those before it, which never takes a matched slot its match. A run whose slots are all
matched starts with those devices; what an older run could match only in part is kept for it. Sets of
devices that can be matched to given slots are independent sets of a matroid, and a matching of the
most slots covers a basis of the free devices: one outside it lets no older run start sooner, whatever
becomes free later. So just as much is kept as an older run can use, and the rest is given away.

A role that several runs can share, such as one teacher's server, is given devices that are held for it
already, unless an older run that waits could use one of them: it would have to wait for all who share.

It knows no row, no lease and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from opdcore.contract.job import ResourceRole

# Kinds of device, the one that a run gets first where any will do.
PREFERENCE = ("cuda", "cpu")


@dataclass(frozen=True, slots=True)
class RoleNeed:
    """Devices that a run asks for in one role; no kind means the best that the host has.

    Runs whose needs name the same thing to `share` can hold the same devices for it.
    """

    role: ResourceRole
    count: int = 1
    kind: str | None = None
    memory_bytes: int | None = None
    share: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A waiting run and all that it asks for; roles that are absent share the devices of `train`."""

    key: int
    needs: tuple[RoleNeed, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A device of the host. One of unknown memory suits whoever asks for no certain memory.

    One that is held for something shared says for what.
    """

    key: int
    kind: str
    memory_bytes: int | None
    is_free: bool
    shared: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one request.

    `granted` holds devices by role where it can start; `kept` those that wait for it until the others
    are free; where it does not `fit`, this host could not start it even if it stood empty.
    """

    request: Request
    fits: bool
    granted: Mapping[ResourceRole, tuple[int, ...]] | None = None
    kept: frozenset[int] = frozenset()


def first_to_start(requests: Iterable[Request], units: Sequence[Unit]) -> Decision | None:
    """The oldest request that can start now without delaying an older one, with its devices."""
    free = sum(unit.is_free for unit in units)
    kept = 0
    for decision in decisions(requests, units):
        if decision.granted is not None:
            return decision
        kept += len(decision.kept)
        if kept == free:
            return None
    return None


def decisions(requests: Iterable[Request], units: Sequence[Unit]) -> Iterator[Decision]:
    """What becomes of each request, oldest first; devices granted to one are no longer free."""
    host = tuple(sorted(units, key=_worth))
    matching = _Matching(tuple(unit for unit in host if unit.is_free))
    empty = tuple((unit.key, unit.kind, unit.memory_bytes) for unit in host)
    kinds = {unit.kind for unit in host}
    waiting: list[_Slot] = []
    for request in requests:
        if not _fits(request.needs, empty):
            yield Decision(request, fits=False)
            continue
        shared = _shared(request.needs, host, waiting)
        slots = _slots([need for need in request.needs if need.role not in shared], kinds)
        before = matching.taken
        matched = [matching.add(slot) for slot in slots]
        if all(matched):
            yield Decision(request, fits=True, granted=matching.by_role(slots) | shared)
        else:
            waiting += slots
            yield Decision(request, fits=True, kept=matching.taken - before)


def _shared(
    needs: Sequence[RoleNeed], host: Sequence[Unit], waiting: Sequence[_Slot]
) -> dict[ResourceRole, tuple[int, ...]]:
    """Roles that get devices which are held for the same thing, and for which no older run waits."""
    found: dict[ResourceRole, tuple[int, ...]] = {}
    for need in needs:
        held = [unit for unit in host if need.share and unit.shared == need.share]
        wanted = any(slot.suits(unit) for slot in waiting for unit in held)
        enough = all((unit.memory_bytes or 0) >= (need.memory_bytes or 0) for unit in held)
        if len(held) == need.count and enough and not wanted:
            found[need.role] = tuple(unit.key for unit in held)
    return found


@dataclass(frozen=True, eq=False)
class _Slot:
    """One device that a run waits for. Two are never equal."""

    role: ResourceRole
    kind: str
    memory_bytes: int

    def suits(self, unit: Unit) -> bool:
        return unit.kind == self.kind and (unit.memory_bytes or 0) >= self.memory_bytes


class _Matching:
    """Slots matched to free devices; those with the least memory that will do are taken first."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = units
        self._slot_of: dict[int, _Slot] = {}

    @property
    def taken(self) -> frozenset[int]:
        """Devices that are matched."""
        return frozenset(self._slot_of)

    def add(self, slot: _Slot) -> bool:
        """Matches one slot more where that is possible at all; those matched before stay so."""
        return self._place(slot, set())

    def by_role(self, slots: Sequence[_Slot]) -> dict[ResourceRole, tuple[int, ...]]:
        """The devices of these slots, each of which is matched."""
        unit_of = {slot: key for key, slot in self._slot_of.items()}
        found: dict[ResourceRole, list[int]] = {}
        for slot in slots:
            found.setdefault(slot.role, []).append(unit_of[slot])
        order = [unit.key for unit in self._units]
        return {role: tuple(sorted(keys, key=order.index)) for role, keys in found.items()}

    def _place(self, slot: _Slot, tried: set[int]) -> bool:
        """An augmenting path from the slot: a free device, or one whose slot can go elsewhere."""
        suited = [unit.key for unit in self._units if slot.suits(unit) and unit.key not in tried]
        for key in suited:
            if key not in self._slot_of:
                self._slot_of[key] = slot
                return True
        for key in suited:
            tried.add(key)
            if self._place(self._slot_of[key], tried):
                self._slot_of[key] = slot
                return True
        return False


@lru_cache(maxsize=4096)
def _fits(needs: tuple[RoleNeed, ...], host: tuple[tuple[int, str, int | None], ...]) -> bool:
    """Whether the host could start it if nothing else ran there; a queue asks for few things often."""
    matching = _Matching([Unit(key, kind, memory, True) for key, kind, memory in host])
    slots = _slots(needs, {kind for _, kind, _ in host})
    return bool(slots) and all(matching.add(slot) for slot in slots)


def _slots(needs: Sequence[RoleNeed], kinds: set[str]) -> list[_Slot]:
    best = next((kind for kind in PREFERENCE if kind in kinds), "cpu")
    return [
        _Slot(need.role, need.kind or best, need.memory_bytes or 0)
        for need in needs
        for _ in range(need.count)
    ]


def _worth(unit: Unit) -> tuple[int, int]:
    """Devices with little memory first, so that large ones are left for those that need them."""
    return (unit.memory_bytes or 0, unit.key)
