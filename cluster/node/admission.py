"""Who is let in when there is more than this node can do: starts wait outside first, then reads.

A start stands for work that nobody has promised yet, so it is the first to be refused, at the door
and at once: the client knows it may come back, and what was let in is done in time. Results of
tasks are never refused. Polls are not either: they find nothing for a while (node/poll.py).

Three things close the door to starts: too much waits for the stores; too many starts are under
way; or those under way would have to wait too long. How long is what Little's law says: as many as
there are, divided by how many get done in a time. So no more are let in than the node gets done
within `admission_delay_ms`, and how many that is, is measured all the time. (Delay against a
target, adapted per interval: DAGOR, in Zhou et al., Overload Control for Scaling WeChat
Microservices, 2018. Here it bounds what is under way, not a rate: a store that stands still is
noticed within as many starts, not within a second.)
"""

from collections.abc import Callable
from itertools import cycle
from typing import Protocol

from cluster.clock import Clock
from cluster.errors import Overloaded
from cluster.metrics import Metrics
from cluster.node.reply import Refusal

STARTS = frozenset(
    {
        ("POST", "/api/workflow"),
        ("POST", "/api/workflow/{name}"),
        ("POST", "/api/workflow/execute/{name}/{version}"),
        ("POST", "/api/workflow/bulk/start"),
    }
)
READS = frozenset(
    {
        ("GET", "/api/workflow/{name}"),
        ("GET", "/api/workflow/{workflowId}/status"),
        ("GET", "/api/workflow/{workflowId}/tasks"),
        ("GET", "/api/workflow/running/{name}"),
        ("GET", "/api/workflow/{name}/correlated/{correlationId}"),
        ("POST", "/api/workflow/{name}/correlated"),
        ("GET", "/api/workflow/search"),
        ("GET", "/api/workflow/search-v2"),
        ("GET", "/api/workflow/search-by-tasks"),
        ("GET", "/api/workflow/search-by-tasks-v2"),
        ("GET", "/api/tasks/search"),
        ("GET", "/api/tasks/search-v2"),
        ("GET", "/api/tasks/{taskId}"),
        ("GET", "/api/tasks/{taskId}/log"),
    }
)

SLICE = 32
"""Items of a bulk request that weigh as much as one start: they share what a request costs."""

_INTERVAL_MS = 100
_FEW = 64
"""Starts that may always be under way: with so few the delay is not of their making."""
_GROW = 2
"""How much the bound grows at most in one interval."""
_READS_DELAY = 5
"""Reads are refused too when starts take this many times as long as they should."""

_RETRY_MS_MIN, _RETRY_MS_MAX, _RETRIES = 500, 2_500, 16
_MESSAGES = {
    "delay": "This node has more to do than it gets done in time; try again later",
    "backlog": "Too much waits to be written to the store; try again later",
    "under_way": "Too many such requests are under way; try again later",
}


class Pass(Protocol):
    """One request that was let in."""

    def weigh(self, items: int) -> None:
        """It turned out to hold many items."""

    def leave(self, *, done: bool) -> None:
        """It is under way no more. Only the first call counts; `done` False says nothing about
        how long work takes: it was refused, or went away."""


class Gate(Protocol):
    """The door for one kind of request."""

    def refusal(self) -> Refusal | None:
        """What to answer at once, before anything is read; None: it may come in."""

    def enter(self) -> Pass:
        """Count a request in whose body has been read."""


class Admission:
    """The doors of a node."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        *,
        instance: str,
        delay_ms: int,
        starts_max: int,
        reads_max: int,
        has_room: Callable[[], bool],
    ) -> None:
        """`has_room`: the stores keep up. It is asked for every start, so it is cheap."""
        self.starts = _StartsUnderWay(clock, metrics, instance, delay_ms, starts_max, has_room)
        self._reads = _ReadsUnderWay(metrics, instance, reads_max, self.starts)

    def gate(self, method: str, pattern: str) -> Gate | None:
        """The door that requests of a route come through."""
        if (method, pattern) in STARTS:
            return self.starts
        return self._reads if (method, pattern) in READS else None


class _StartsUnderWay:
    """Lets in as many starts as are done within the delay that is aimed at."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        instance: str,
        delay_ms: int,
        starts_max: int,
        has_room: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._delay_ms = delay_ms
        self._starts_max = starts_max
        self._few = min(_FEW, starts_max)
        self._has_room = has_room
        self._refusals = _Refusals("start", instance, metrics)
        self._limit_shown = metrics.admission_limit.of()
        self._under_way_shown = metrics.starts_under_way.of()
        self.limit = starts_max
        self._limit_shown.set(starts_max)
        self.under_way = 0
        self.mean_ms = 0.0
        """What starts took in the last interval that had any."""
        self._since_ms = clock.monotonic_ms()
        self._sum_ms = 0
        self._done = 0
        self._was_reached = False

    def refusal(self) -> Refusal | None:
        if self.under_way >= self.limit:
            self._was_reached = True
            reason = "delay" if self.limit < self._starts_max else "under_way"
            return self._refusals.next(reason)
        if not self._has_room():
            return self._refusals.next("backlog")
        return None

    def enter(self) -> "_StartPass":
        now_ms = self._clock.monotonic_ms()
        if not self.under_way:
            self._begin_after_idleness(now_ms)
        self._weigh(1)
        return _StartPass(self, now_ms)

    def enter_or_refuse(self) -> "_StartPass":
        """The door for starts that other nodes bring. Overloaded: come back later."""
        refusal = self.refusal()
        if refusal is not None:
            raise Overloaded(refusal.message)
        return self.enter()

    def _weigh(self, weight: int) -> None:
        self.under_way += weight
        self._under_way_shown.value = self.under_way

    def left(self, began_ms: int, weight: int, *, done: bool) -> None:
        self.under_way -= weight
        self._under_way_shown.value = self.under_way
        if not done:
            return
        now_ms = self._clock.monotonic_ms()
        self._sum_ms += now_ms - began_ms
        self._done += weight
        if now_ms - self._since_ms >= _INTERVAL_MS:
            self._adapt(now_ms)

    def _begin_after_idleness(self, now_ms: int) -> None:
        # How much gets done in a time is to be seen only while there is enough to do.
        if self._was_reached:
            self._set(self.limit * _GROW)
        self.mean_ms = 0
        self._begin(now_ms)

    def _begin(self, now_ms: int) -> None:
        self._since_ms = now_ms
        self._sum_ms = self._done = 0
        self._was_reached = False

    def _adapt(self, now_ms: int) -> None:
        self.mean_ms = self._sum_ms / self._done
        in_time = self._done * self._delay_ms / (now_ms - self._since_ms)
        if self.under_way > in_time:
            self._set(in_time)
        elif self._was_reached and self.mean_ms <= self._delay_ms:
            self._set(self.limit * min(self._delay_ms / max(self.mean_ms, 1), _GROW) + 1)
        self._begin(now_ms)

    def _set(self, limit: float) -> None:
        self.limit = max(self._few, min(int(limit), self._starts_max))
        self._limit_shown.set(self.limit)

    @property
    def are_late(self) -> bool:
        """Refusing starts alone does not help, or not yet."""
        return self.under_way > 0 and self.mean_ms > _READS_DELAY * self._delay_ms


class _StartPass:
    __slots__ = ("_began_ms", "_starts", "_weight")

    def __init__(self, starts: _StartsUnderWay, began_ms: int) -> None:
        self._starts = starts
        self._began_ms = began_ms
        self._weight = 1

    def weigh(self, items: int) -> None:
        more = items // SLICE
        self._weight += more
        self._starts._weigh(more)

    def leave(self, *, done: bool) -> None:
        if self._weight:
            self._starts.left(self._began_ms, self._weight, done=done)
            self._weight = 0


class _ReadsUnderWay:
    """Lets in a number of reads, and none while what was started waits far too long."""

    def __init__(
        self, metrics: Metrics, instance: str, reads_max: int, starts: _StartsUnderWay
    ) -> None:
        self._refusals = _Refusals("read", instance, metrics)
        self._reads_max = reads_max
        self._starts = starts
        self.under_way = 0

    def refusal(self) -> Refusal | None:
        if self.under_way >= self._reads_max:
            return self._refusals.next("under_way")
        return self._refusals.next("delay") if self._starts.are_late else None

    def enter(self) -> "_ReadPass":
        self.under_way += 1
        return _ReadPass(self)


class _ReadPass:
    __slots__ = ("_reads",)

    def __init__(self, reads: _ReadsUnderWay) -> None:
        self._reads: _ReadsUnderWay | None = reads

    def weigh(self, items: int) -> None:
        pass

    def leave(self, *, done: bool) -> None:
        reads, self._reads = self._reads, None
        if reads is not None:
            reads.under_way -= 1


class _Refusals:
    """Refusals of one kind of request: encoded once, each with another time to come back."""

    def __init__(self, kind: str, instance: str, metrics: Metrics) -> None:
        step = (_RETRY_MS_MAX - _RETRY_MS_MIN) // (_RETRIES - 1)
        # Neighbours come back at times that lie far apart.
        waits = [_RETRY_MS_MIN + step * (place * 7 % _RETRIES) for place in range(_RETRIES)]
        self._next = {
            reason: cycle([Refusal(message, instance, wait_ms) for wait_ms in waits]).__next__
            for reason, message in _MESSAGES.items()
        }
        self._counters = {reason: metrics.requests_refused.of(kind, reason) for reason in _MESSAGES}

    def next(self, reason: str) -> Refusal:
        self._counters[reason].inc()
        return self._next[reason]()
