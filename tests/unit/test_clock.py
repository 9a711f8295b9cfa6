"""The steered clock: it goes evenly, whatever becomes of the wall clock."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import SystemClock

START_MS = 1_800_000_000_000
TEN_MINUTES_MS = 600_000


class Machine:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.passed_ms = 0
        self.set_by_ms = 0
        self.clock = SystemClock(
            wall_ms=lambda: START_MS + self.passed_ms + self.set_by_ms,
            steady_ms=lambda: 77 + self.passed_ms,
        )

    def off_ms(self) -> int:
        """How far the steered clock is ahead of what the time is."""
        return self.clock.now_ms() - START_MS - self.passed_ms

    def go(self, ms: int, *, looking_every_ms: int = 50) -> None:
        for _ in range(ms // looking_every_ms):
            self.passed_ms += looking_every_ms
            self.clock.now_ms()


def test_it_begins_as_the_wall_clock_and_stays_with_it() -> None:
    machine = Machine()
    assert machine.off_ms() == 0
    machine.go(100_000)
    assert machine.off_ms() == 0


def test_a_jump_is_not_taken_over_and_made_up_for_slowly() -> None:
    for jump_ms in (TEN_MINUTES_MS, -TEN_MINUTES_MS):
        machine = Machine()
        machine.set_by_ms = jump_ms
        assert machine.off_ms() == 0
        machine.go(10_000)
        assert 0 < abs(machine.off_ms()) <= 500
        # Put right, it leaves nothing behind.
        machine.set_by_ms = 0
        machine.go(12_000)
        assert machine.off_ms() == 0


def test_a_small_difference_is_gone_soon() -> None:
    machine = Machine()
    machine.set_by_ms = 300
    machine.go(8_000)
    assert machine.off_ms() == 300


def test_a_clock_that_had_not_been_set_is_followed_at_once() -> None:
    machine = Machine()
    machine.set_by_ms = 50 * 365 * 86_400_000
    machine.go(50)
    assert machine.off_ms() == machine.set_by_ms


def test_a_jump_that_somebody_who_knows_confirms_is_followed_at_once() -> None:
    """A virtual machine stood still for a minute, and its clock was put right."""
    machine = Machine()
    machine.set_by_ms = 60_000
    machine.clock.hear(START_MS + 60_020)
    assert machine.off_ms() == 60_000


def test_one_that_is_contradicted_is_not() -> None:
    machine = Machine()
    machine.set_by_ms = 60_000
    machine.clock.hear(START_MS + 20)
    assert machine.off_ms() == 0


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(-1_700_000, 1_700_000)), max_size=30))
def test_it_never_goes_back(steps: list[tuple[int, int]]) -> None:
    machine = Machine()
    before_ms = machine.clock.now_ms()
    for passed_ms, set_by_ms in steps:
        machine.passed_ms += passed_ms
        machine.set_by_ms = set_by_ms
        now_ms = machine.clock.now_ms()
        assert now_ms >= before_ms
        before_ms = now_ms
