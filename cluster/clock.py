"""Time and randomness as ports: the only module that imports time, random, secrets or uuid."""

import random
import time
from collections.abc import Callable
from typing import Protocol

stopwatch_s = time.perf_counter
"""Seconds from an arbitrary start, for metrics alone: nothing that is decided may rest on it."""


_STEER_EVERY_MS = 20
_STEER_PERCENT = 5
_NEVER_SET_MS = 3_600_000
"""A clock this far off had not been set before: it would not be caught up with in any good time."""


class Clock(Protocol):
    """Two clocks: one that people read, and one that never goes back."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""

    def monotonic_ms(self) -> int:
        """Milliseconds from an arbitrary start; for durations and deadlines."""


class Random(Protocol):
    """Random bits for ids and spreading; never for decisions of the engine."""

    def bits(self, count: int) -> int:
        """A whole number of `count` random bits."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


# Where there is such a clock, one that counts while the machine is suspended: leases run out then.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _steady_ms() -> int:
    return time.clock_gettime_ns(_STEADY) // 1_000_000


class SystemClock:
    """The machine's clocks. `now_ms` is steered: when the wall clock jumps it does not, but goes a
    little faster or slower until both agree.

    An owner stamps events, and never below its last stamp. Were a jump ahead taken over, a shard
    would live in the future until the wall clock, put right, had caught up with it: timers would
    be as late, and what others draw ids from would be refused.
    """

    def __init__(
        self,
        *,
        wall_ms: Callable[[], int] = _wall_ms,
        steady_ms: Callable[[], int] = _steady_ms,
    ) -> None:
        self._wall_ms = wall_ms
        self._steady_ms = steady_ms
        self._steered_ms = steady_ms()
        self._ahead_ms = wall_ms() - self._steered_ms

    def now_ms(self) -> int:
        now_ms = self._steady_ms()
        if now_ms - self._steered_ms >= _STEER_EVERY_MS:
            self._steer(now_ms)
        return now_ms + self._ahead_ms

    def monotonic_ms(self) -> int:
        return self._steady_ms()

    def hear(self, true_ms: int) -> None:
        """Somebody who knows says that it is `true_ms`. If that is what the wall clock shows, it
        was set right, perhaps after the machine had stood still: it is followed at once."""
        now_ms, wall_ms = self._steady_ms(), self._wall_ms()
        if abs(wall_ms - true_ms) < abs(now_ms + self._ahead_ms - true_ms):
            self._ahead_ms = wall_ms - now_ms

    def _steer(self, now_ms: int) -> None:
        most_ms = max(1, (now_ms - self._steered_ms) * _STEER_PERCENT // 100)
        self._steered_ms = now_ms
        off_ms = self._wall_ms() - now_ms - self._ahead_ms
        if abs(off_ms) < _NEVER_SET_MS:
            off_ms = max(-most_ms, min(most_ms, off_ms))
        self._ahead_ms += off_ms


class SystemRandom:
    """A generator of its own, seeded by the operating system."""

    def __init__(self) -> None:
        self.bits = random.Random(random.SystemRandom().getrandbits(128)).getrandbits
