"""A fleet of hosts without rows: runs arrive, are claimed, end and are lost, by a clock of its own.

Everything that an allocation promises is checked after each event by means of its own: sets of
devices are counted out as bit masks, not matched.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

from webapp.services.allocation import PREFERENCE, Request, RoleNeed, Unit, first_to_start

GB = 1_000_000_000
LEASE = 3
# Keys, kinds and memory of eight devices on two hosts.
HOSTS = {
    "a": ((0, "cuda", 80), (1, "cuda", 80), (2, "cuda", 40), (3, "cuda", 40)),
    "b": ((4, "cuda", 40), (5, "cuda", 24), (6, "cpu", 64), (7, "cpu", 64)),
}


@dataclass
class Job:
    """One run of the fleet."""

    key: int
    needs: tuple[RoleNeed, ...]
    duration: int
    queued_at: int
    host: str = ""
    held: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ends_at: int | None = None
    starts: list[int] = field(default_factory=list)
    waits_from: int = 0

    @property
    def units(self):
        return set(chain.from_iterable(self.held.values()))


@dataclass
class Fleet:
    """All of it at one moment. `longest` is the longest that any run holds its devices."""

    longest: int
    now: int = 0
    jobs: dict[int, Job] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    dead: dict[str, int] = field(default_factory=dict)
    started: list[tuple[int, int]] = field(default_factory=list)
    down: set[int] = field(default_factory=set)
    longest_wait: int = 0
    shares: int = 0

    # --- events, each followed by `settle` ---

    def arrive(self, needs, duration):
        key = len(self.jobs)
        self.jobs[key] = Job(key, needs, duration, self.now, waits_from=self.now)
        self.waiting.append(key)

    def pass_time(self):
        """One tick: runs of living hosts end in time; leases of dead ones run out."""
        if self.dead:
            self.down.add(self.now)
        self.now += 1
        for key in sorted(self.running):
            job = self.jobs[key]
            if job.host in self.dead:
                if self.now - self.dead[job.host] >= LEASE:
                    self.lose(key)
            elif job.ends_at <= self.now:
                self._release(key)
                self.ended.add(key)

    def die(self, host):
        self.dead.setdefault(host, self.now)

    def come_back(self, host):
        """The worker takes back what it left behind."""
        if self.dead.pop(host, None) is None:
            return
        for key in [one for one in self.running if self.jobs[one].host == host]:
            self.lose(key)

    def lose(self, key):
        """A lease that nobody renewed: the run regains its old place in the queue."""
        self._release(key)
        self.jobs[key].waits_from = self.now
        self.waiting = sorted([*self.waiting, key])

    def cancel(self, key):
        self.waiting.remove(key)
        self.ended.add(key)

    def settle(self):
        """Each living host claims until it finds nothing more to start."""
        for host in sorted(set(HOSTS) - set(self.dead)):
            while self._claim(host):
                pass
            self._check_nothing_idles(host)
        self._check_leases()
        self._check_waits()

    # --- the claim, as a worker makes it ---

    def free(self, host):
        held = set(chain.from_iterable(self.jobs[key].units for key in self.running))
        shared = self.shared()
        return [
            Unit(k, kind, m * GB, k not in held, shared.get(k, "")) for k, kind, m in HOSTS[host]
        ]

    def shared(self):
        """What the devices are shared for, by device."""
        return {
            key: need.share
            for running in self.running
            for need in self.jobs[running].needs
            for key in (self.jobs[running].held[need.role] if need.share else ())
        }

    def _claim(self, host):
        units = self.free(host)
        requests = [Request(key, self.jobs[key].needs) for key in self.waiting]
        decision = first_to_start(requests, units)
        if decision is None:
            return False
        job = self.jobs[decision.request.key]
        job.held, job.host = dict(decision.granted), host
        self._check_grant(job, units)
        self._check_no_delay(job, units)
        job.ends_at = self.now + job.duration
        job.starts.append(self.now)
        self.started.append((self.now, job.key))
        self.waiting.remove(job.key)
        self.running.add(job.key)
        return True

    def _release(self, key):
        self.running.discard(key)
        self.jobs[key].held = {}

    # --- invariants ---

    def _check_leases(self):
        """Nobody shares a device but for the same thing, and whoever runs holds all that it asked for."""
        held = {
            (key, need.share or (running, need.role))
            for running in self.running
            for need in self.jobs[running].needs
            for key in self.jobs[running].held[need.role]
        }
        assert len(held) == len({key for key, _ in held}), "a device is leased twice"
        for key in self.running:
            job = self.jobs[key]
            assert {role: len(keys) for role, keys in job.held.items()} == {
                need.role: need.count for need in job.needs
            }, "a run holds a part of what it needs"

    def _check_grant(self, job, units):
        known = {unit.key: unit for unit in units}
        assert len(job.units) == sum(need.count for need in job.needs)
        for need in job.needs:
            given = [known[key] for key in job.held[need.role]]
            for unit in given:
                assert unit.is_free or (need.share and unit.shared == need.share), "it is held"
                assert unit.is_free or not self._wanted(job, unit, units), (
                    "an older run waits for it"
                )
                assert unit.kind == (need.kind or best(units))
                assert unit.memory_bytes >= (need.memory_bytes or 0)
            self.shares += any(not unit.is_free for unit in given)

    def _wanted(self, job, unit, units):
        """Whether an older run that waits could use the device."""
        return any(suited(unit, needs, units) for needs in self._older(job.key, job.host))

    def _check_no_delay(self, job, units):
        """Without what it was given, older runs can match as many free devices as with it."""
        free = [unit for unit in units if unit.is_free]
        left = [unit for unit in free if unit.key not in job.units]
        older = self._older(job.key, job.host)
        assert ranks(older, free, units) == ranks(older, left, units), "an older run is delayed"

    def _check_nothing_idles(self, host):
        """No waiting run could start here without taking what an older one can use."""
        units = self.free(host)
        free = [unit for unit in units if unit.is_free]
        seen: set[tuple[RoleNeed, ...]] = set()
        for key in self.waiting:
            needs = self.jobs[key].needs
            if needs in seen:
                continue  # Whoever asks for the same as an older run may take even less.
            seen.add(needs)
            wholes = whole(needs, free, units)
            older = self._older(key, host) if wholes else []
            before = ranks(older, free, units)
            for mask in wholes:
                left = [unit for index, unit in enumerate(free) if not mask >> index & 1]
                assert ranks(older, left, units) != before, "devices idle that nobody older can use"

    def _older(self, key, host):
        """Needs of the older waiting runs that this host could start if it were empty.

        What one of them can share with a run that holds it, it does not wait for.
        """
        units, found = self.free(host), []
        for needs in (self.jobs[one].needs for one in self.waiting if one < key):
            if fits(needs, host):
                found.append(tuple(n for n in needs if not self._is_shared(n, units, found)))
        return found

    def _is_shared(self, need, units, older):
        held = [unit for unit in units if need.share and unit.shared == need.share]
        return len(held) == need.count and not any(
            suited(unit, needs, units) for unit in held for needs in older
        )

    def _check_waits(self):
        """A run starts within (1 + k) x `longest` of host time, k older runs having started since.

        The oldest waiting run needs devices that are held now, each for `longest` at most, and none
        that became free in the meantime was given away to its cost. So whoever is oldest starts
        within `longest`, and at most k others are oldest before. Time in which a host was dead counts
        for nobody: what it ran began anew.
        """
        for key in self.waiting:
            job = self.jobs[key]
            if not any(fits(job.needs, host) for host in HOSTS):
                assert not job.starts, "a run started that fits nowhere"
                continue
            since = job.waits_from
            older = sum(at >= since and other < key for at, other in self.started)
            waited = self.now - since - sum(tick >= since for tick in self.down)
            self.longest_wait = max(self.longest_wait, waited)
            assert waited <= (1 + older) * self.longest, f"run {key} starves"


def suited(unit, needs, units):
    """Whether the device would do for one of the slots, were it free."""
    slots = wants(needs, units)
    return any(unit.kind == kind and unit.memory_bytes >= memory for kind, memory in slots)


def best(units):
    kinds = {unit.kind for unit in units}
    return next(kind for kind in PREFERENCE if kind in kinds)


def wants(needs, units):
    """The slots of a run as pairs of kind and least memory."""
    return [
        (need.kind or best(units), need.memory_bytes or 0)
        for need in needs
        for _ in range(need.count)
    ]


def grown(found, slots, free):
    """Sets of free devices, as bits, that can be given to some of the slots, beside those found."""
    for kind, memory in slots:
        suited = [i for i, u in enumerate(free) if u.kind == kind and u.memory_bytes >= memory]
        found = found | {mask | 1 << i for mask in found for i in suited if not mask >> i & 1}
    return found


def whole(needs, free, units):
    """The sets of free devices that would do for a run."""
    slots = wants(needs, units)
    return [mask for mask in grown({0}, slots, free) if mask.bit_count() == len(slots)]


@cache
def fits(needs, host):
    """Whether the host could start it if it stood empty."""
    units = [Unit(key, kind, memory * GB, True) for key, kind, memory in HOSTS[host]]
    return bool(whole(needs, units, units))


def ranks(older, free, units):
    """How many free devices the first runs could use together, for each number of them."""
    found, ranked, seen = {0}, [], Counter()
    for needs in older:
        slots = wants(needs, units)
        # As many equal slots as there are devices are as good as any number of them.
        fresh = [
            slot for n, slot in enumerate(slots) if seen[slot] + slots[:n].count(slot) < len(free)
        ]
        seen.update(slots)
        found = grown(found, fresh, free)
        ranked.append(max(mask.bit_count() for mask in found))
    return ranked
