"""Time and randomness as ports: the only module that imports time, random, secrets or uuid."""

import random
import time
from typing import Protocol

stopwatch_s = time.perf_counter
"""Seconds from an arbitrary start, for metrics alone: nothing that is decided may rest on it."""


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


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


class SystemRandom:
    """A generator of its own, seeded by the operating system."""

    def __init__(self) -> None:
        self.bits = random.Random(random.SystemRandom().getrandbits(128)).getrandbits
