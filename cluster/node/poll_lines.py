"""Where long polls wait: a line for each queue, and one heap with the deadlines of all."""

import asyncio
from collections import OrderedDict
from heapq import heappop, heappush
from itertools import count

from cluster.clock import Clock

RETRY_MS_MAX = 1000
"""How often at least a parked poll looks again when a due time is known: the clock may be set."""


class Waiting:
    """One parked poll."""

    __slots__ = ("deadline_ms", "line", "listed", "over", "turn")

    def __init__(self, deadline_ms: int) -> None:
        self.deadline_ms = deadline_ms
        self.listed = False
        self.over = False
        """Answered, or its time is up."""
        self.turn: asyncio.Future[bool]
        self.line: Line | None = None
        """The line that gave it the turn."""


class Line:
    """The polls that wait for one queue. It exists while it has any."""

    __slots__ = ("_retry", "_retry_ms", "news", "polls", "queue", "taken", "visitors")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.polls: OrderedDict[Waiting, None] = OrderedDict()
        self.taken = False
        """A poll has the turn: it looks into the queue, or is about to."""
        self.news = False
        """A wake came since the last look began, and nobody was there to take the turn."""
        self.visitors = 0
        """Polls of several types that come back to this line."""
        self._retry: asyncio.TimerHandle | None = None
        self._retry_ms = 0

    def enter(self, waiting: Waiting, *, front: bool) -> None:
        self.polls[waiting] = None
        if front:
            self.polls.move_to_end(waiting, last=False)

    def begin(self) -> None:
        """Whoever has the turn looks into the queue now."""
        self.taken, self.news = True, False

    def next(self) -> None:
        """Give the turn to the first poll that still waits."""
        while self.polls:
            waiting, _ = self.polls.popitem(last=False)
            if not waiting.turn.done():
                self.taken = True
                waiting.line = self
                waiting.turn.set_result(True)
                return
        self.news = True

    def pass_on(self) -> None:
        """Whoever has the turn cannot use it."""
        self.taken = False
        self.next()

    @property
    def is_unused(self) -> bool:
        return not (self.taken or self.polls or self.visitors)

    def retry_at(self, at_ms: int, now_ms: int) -> None:
        """Give somebody the turn at `at_ms`, if not before."""
        at_ms = min(at_ms, now_ms + RETRY_MS_MAX)
        if self._retry is not None:
            if self._retry_ms <= at_ms:
                return
            self._retry.cancel()
        self._retry_ms = at_ms
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later((at_ms - now_ms) / 1000, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        if self.taken:
            self.news = True
        else:
            self.next()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for waiting in self.polls:
            if not waiting.turn.done():
                waiting.turn.set_result(False)


class Deadlines:
    """When parked polls have waited long enough: one heap and one timer for all."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int, Waiting]] = []
        self._arrivals = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0

    def add(self, waiting: Waiting) -> None:
        if waiting.listed:
            return
        waiting.listed = True
        heappush(self._heap, (waiting.deadline_ms, next(self._arrivals), waiting))
        if self._timer is None or waiting.deadline_ms < self._timer_ms:
            self._arm(waiting.deadline_ms)

    def _arm(self, at_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = at_ms
        delay_ms = max(at_ms - self._clock.monotonic_ms(), 0)
        self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now_ms = self._clock.monotonic_ms()
        heap = self._heap
        while heap and (heap[0][0] <= now_ms or heap[0][2].over):
            waiting = heappop(heap)[2]
            waiting.over = True
            if not waiting.turn.done():
                waiting.turn.set_result(False)
        if heap:
            self._arm(heap[0][0])

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._heap.clear()


def deadline_ms_of(now_ms: int, timeout_ms: int) -> int:
    """Up to 3 % late, so that the deadlines of many idle polls fall together: a wake-up of an idle
    process costs more than what it does then."""
    grid_ms = 1 << (timeout_ms >> 5).bit_length() >> 1
    return -(-(now_ms + timeout_ms) // grid_ms) * grid_ms if grid_ms else now_ms + timeout_ms


def has_come(at_ms: int | None, now_ms: int) -> bool:
    return at_ms is not None and at_ms <= now_ms
