"""The allocation: never a device twice, never a part, nobody starved, nothing idle in vain."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.webapp.fleet import GB, HOSTS, Fleet
from webapp.services.allocation import Request, RoleNeed, Unit, decisions, first_to_start

LONGEST = 6


def units(*kinds, busy=()):
    return [Unit(key, kind, 80 * GB, key not in busy) for key, kind in enumerate(kinds)]


def train(count=1, kind="cuda", memory=None):
    return RoleNeed("train", count, kind, memory)


def decided(requests, host):
    found = decisions([Request(key, needs) for key, needs in enumerate(requests)], host)
    return [one.granted or set(one.kept) for one in found]


def test_roles_get_devices_of_their_own():
    needs = (train(2), RoleNeed("teacher", 1, "cuda"))
    assert decided([needs], units(*["cuda"] * 4)) == [{"train": (0, 1), "teacher": (2,)}]


def test_of_several_roles_all_are_given_or_none():
    needs = (train(2), RoleNeed("teacher", 2, "cuda"))
    assert decided([needs], units(*["cuda"] * 4, busy={3})) == [{0, 1, 2}]


def test_any_kind_is_the_best_of_the_host():
    assert decided([(train(kind=None),)], units("cpu", "cuda")) == [{"train": (1,)}]
    assert decided([(train(kind=None),)], units("cpu")) == [{"train": (0,)}]


def test_the_smallest_memory_that_will_do_is_taken():
    host = [Unit(key, "cuda", size * GB, True) for key, size in enumerate((80, 24, 40))]
    assert decided([(train(memory=30 * GB),)], host) == [{"train": (2,)}]


def test_unknown_memory_suits_whoever_asks_for_none():
    host = [Unit(0, "cuda", None, True)]
    assert decided([(train(),)], host) == [{"train": (0,)}]
    assert not next(decisions([Request(0, (train(memory=GB),))], host)).fits


def test_only_as_many_are_kept_as_the_older_run_can_use():
    host = [Unit(key, "cuda", size * GB, key != 0) for key, size in enumerate((80, 40, 40, 40))]
    big = (train(memory=80 * GB), RoleNeed("teacher", 1, "cuda"))
    assert decided([big, (train(),), (train(),), (train(),)], host) == [
        {1},
        {"train": (2,)},
        {"train": (3,)},
        set(),
    ]


def test_a_younger_run_moves_an_older_ones_reservation_where_nothing_is_lost():
    host = [
        Unit(0, "cuda", 40 * GB, True),
        Unit(1, "cuda", 80 * GB, True),
        Unit(2, "cpu", GB, False),
    ]
    older = (train(), RoleNeed("sample", 1, "cpu"))
    assert decided([older, (train(memory=60 * GB),)], host) == [{0}, {"train": (1,)}]


def test_what_fits_nowhere_keeps_nothing():
    assert decided([(train(9),), (train(),)], units("cuda")) == [set(), {"train": (0,)}]


def teacher(share="big", count=1):
    return RoleNeed("teacher", count, "cuda", None, share)


def test_a_teacher_that_is_held_for_another_run_is_shared():
    host = [*units("cuda", "cuda"), Unit(2, "cuda", 80 * GB, False, "big")]
    assert decided([(train(), teacher()), (train(), teacher("small"))], host) == [
        {"train": (0,), "teacher": (2,)},
        {1},
    ]


def test_a_teacher_is_not_shared_where_an_older_run_waits_for_its_device():
    host = [*units("cuda"), Unit(1, "cuda", 80 * GB, False, "big")]
    assert decided([(train(2),), (train(), teacher())], host) == [{0}, set()]


def test_whoever_can_share_does_not_wait_for_the_teachers_device():
    shared = Unit(0, "cuda", 80 * GB, False, "big")
    others = [Unit(key, "cuda", 80 * GB, key != 2) for key in (1, 2)]
    waiting, younger = (train(2), teacher()), (train(), teacher())
    assert decided([waiting, younger], [shared, *others]) == [{1}, set()]
    free = [Unit(key, "cuda", 80 * GB, True) for key in (3, 4)]
    assert decided([waiting, younger], [shared, *others, *free]) == [
        {"train": (1, 3), "teacher": (0,)},
        {"train": (4,), "teacher": (0,)},
    ]


def test_a_shared_teacher_has_as_many_devices_as_were_asked_for():
    host = [*units("cuda", "cuda", "cuda"), Unit(3, "cuda", 80 * GB, False, "big")]
    assert decided([(train(), teacher(count=2))], host) == [{"train": (0,), "teacher": (1, 2)}]


def test_nothing_is_decided_once_all_that_is_free_is_kept():
    def requests():
        yield Request(0, (train(2),))
        raise AssertionError("the queue was read on")

    assert first_to_start(requests(), units("cuda", "cuda", busy={0})) is None


# --- eight devices, two hundred runs ---

counts = st.integers(1, 4)
memories = st.sampled_from([None, None, 24 * GB, 40 * GB, 80 * GB])
kinds = st.sampled_from([None, "cuda", "cuda", "cpu"])


# Of one name, runs of one teacher: they ask for the same.
shared_teachers = st.sampled_from([teacher("a"), teacher("b", 2)])


@st.composite
def role_needs(draw):
    kind = draw(kinds)
    others = draw(st.lists(st.sampled_from(["sample", "teacher"]), unique=True, max_size=2))
    return (
        RoleNeed("train", draw(counts), kind, draw(memories)),
        *(
            draw(shared_teachers)
            if role == "teacher" and draw(st.booleans())
            else RoleNeed(role, draw(st.integers(1, 2)), kind, draw(memories))
            for role in others
        ),
    )


class FleetMachine(RuleBasedStateMachine):
    """Any order of events that hypothesis thinks of; the fleet checks itself after each."""

    @initialize()
    def begin(self):
        self.fleet = Fleet(longest=LONGEST)

    @rule(needs=role_needs(), duration=st.integers(1, LONGEST))
    def arrive(self, needs, duration):
        self.fleet.arrive(needs, duration)
        self.fleet.settle()

    @rule()
    def tick(self):
        self.fleet.pass_time()
        self.fleet.settle()

    @rule(host=st.sampled_from(sorted(HOSTS)))
    def die(self, host):
        self.fleet.die(host)
        self.fleet.settle()

    @rule(host=st.sampled_from(sorted(HOSTS)))
    def come_back(self, host):
        self.fleet.come_back(host)
        self.fleet.settle()

    @rule(data=st.data())
    def lease_expires(self, data):
        if self.fleet.running:
            self.fleet.lose(data.draw(st.sampled_from(sorted(self.fleet.running))))
            self.fleet.settle()

    @rule(data=st.data())
    def cancel(self, data):
        if self.fleet.waiting:
            self.fleet.cancel(data.draw(st.sampled_from(self.fleet.waiting)))
            self.fleet.settle()


FleetMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, derandomize=True
)
test_whatever_happens_in_whatever_order = FleetMachine.TestCase


def drawn_needs(rng):
    kind = rng.choice([None, "cuda", "cuda", "cpu"])
    memory = rng.choice([None, None, 24, 40, 80])
    others = {
        role: RoleNeed(role, rng.choice([1, 1, 2]), kind)
        for role in ("sample", "teacher")
        if rng.random() < 0.25
    }
    if rng.random() < 0.4:
        others["teacher"] = rng.choice([teacher("a"), teacher("a"), teacher("b", 2)])
    train_need = RoleNeed("train", rng.choice([1, 1, 1, 2, 2, 4]), kind, memory and memory * GB)
    return (train_need, *others.values())


def lived_through(seed, rate):
    rng, fleet = random.Random(seed), Fleet(longest=LONGEST)
    while len(fleet.jobs) < 200 or fleet.waiting or fleet.running:
        for _ in range(min(200 - len(fleet.jobs), round(rng.expovariate(1 / rate)))):
            fleet.arrive(drawn_needs(rng), rng.randint(1, LONGEST))
            fleet.settle()
        _mishap(rng, fleet)
        fleet.pass_time()
        fleet.settle()
        stuck = not fleet.running and not fleet.dead and len(fleet.jobs) == 200
        if stuck:
            assert not any(fleet.jobs[key].starts for key in fleet.waiting)
            break
    fits = [key for key in fleet.jobs if key not in fleet.waiting]
    assert fleet.ended == set(fits)
    assert len(fits) > 100
    return fleet


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), rate=st.sampled_from([0.3, 1.0, 5.0]))
def test_two_hundred_runs_on_eight_devices_start_within_their_bound_and_end(seed, rate):
    lived_through(seed, rate)


def test_runs_of_one_teacher_share_its_devices_where_no_older_run_could_use_them():
    assert lived_through(seed=2, rate=5.0).shares > 5


def _mishap(rng, fleet):
    luck = rng.random()
    if luck < 0.04:
        fleet.die(rng.choice(sorted(HOSTS)))
    elif luck < 0.08 and fleet.running:
        fleet.lose(rng.choice(sorted(fleet.running)))
    for host in list(fleet.dead):
        if rng.random() < 0.3:
            fleet.come_back(host)
    fleet.settle()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_stream_of_small_runs_does_not_starve_a_larger_one(count):
    fleet = Fleet(longest=LONGEST)
    for tick in range(60):
        fleet.arrive((train(),), LONGEST)
        if tick == 10:
            fleet.arrive((train(count),), 1)
            big = fleet.jobs[len(fleet.jobs) - 1]
        fleet.pass_time()
        fleet.settle()
    assert big.starts
    ahead = sum(at >= big.queued_at and key < big.key for at, key in fleet.started)
    assert big.starts[0] - big.queued_at <= (1 + ahead) * LONGEST
