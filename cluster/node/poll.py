"""Long polls: parked until a task comes, answered in the order they came.

The polls of one queue stand in a line. Only the poll that has the line's turn looks into the queue;
the others cost a future each, and an entry in one heap of deadlines. A wake gives the turn to the
first of the line, who passes it on only if there is more. So a push of n tasks wakes as many polls
as it takes to carry them, and nobody polls the queue while nothing happens.
"""

import asyncio
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from itertools import count as count_from
from typing import Protocol

import msgspec

from cluster.clock import Clock
from cluster.errors import InvalidRequest, Unavailable
from cluster.ids import TaskId
from cluster.logs import get_log
from cluster.metrics import NO_DOMAIN, Metrics
from cluster.node.poll_lines import RETRY_MS_MAX, Deadlines, Line, Waiting, deadline_ms_of, has_come
from cluster.store.queue_ports import Limits, QueueItem, Queues, queue_name

log = get_log(__name__)

TIMEOUT_MS_MAX = 5000
COUNT_MAX = 1000
PARKED_MAX = 50_000
POLLED_QUEUES_MAX = 10_000

# A domain that was polled so lately is known to be served.
_KNOWN_MS = 5000
# In front of the name of a queue: another one, into which nothing ever comes.
_NOBODYS = "\0"
# Looks in a row that found only tasks their owners did not want handed out, before others run.
_ROUNDS_MAX = 50


class HandOver(msgspec.Struct, frozen=True, gc=False):
    """What the owner noted for a task that goes to a worker."""

    start_time_ms: int
    """Of the first hand-over of this attempt."""
    update_time_ms: int
    poll_count: int
    queue_wait_ms: int
    """From scheduling to the first hand-over."""


class TaskOwner(Protocol):
    """The shards, as far as polls need them. Neither method may raise."""

    def hand_over(
        self, task_id: TaskId, *, delivery: int, worker_id: str | None, at_ms: int
    ) -> HandOver | None:
        """Note that a worker gets this delivery: IN_PROGRESS. None = it is not to be handed out
        (ended, or another delivery stands): its queue forgets it."""

    def take_back(self, task_id: TaskId, *, delivery: int) -> None:
        """The worker never got this delivery: SCHEDULED again."""


class Fragments(Protocol):
    """The constant parts of answers, which polls of every node need."""

    def knows(self, key: str) -> bool:
        """Whether `fragment_of` has it."""

    async def fetch(self, key: str, task_type: str) -> None:
        """Have it from now on, if it can be had at all. May not raise."""


class PollData(msgspec.Struct, frozen=True, gc=False):
    """Who polled a queue last."""

    task_type: str
    domain: str | None
    worker_id: str | None
    last_poll_ms: int


class Polled:
    """What one poll got; `bodies` are JSON objects, ready to be joined by commas."""

    __slots__ = ("bodies", "items", "queue")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.bodies: list[bytes] = []
        self.items: list[QueueItem] = []


class PollDesk:
    """All polls that this node answers."""

    def __init__(
        self,
        *,
        queues: Queues,
        owner: TaskOwner,
        clock: Clock,
        metrics: Metrics,
        limits_of: Callable[[str], Limits | None],
        fragment_of: Callable[[str], bytes],
        complete: Callable[[QueueItem], bytes],
        fragments: Fragments | None = None,
        may_hand_out: Callable[[], bool] = lambda: True,
        counts_holds: bool = True,
        reserved: Container[str] = (),
    ) -> None:
        """`limits_of` a task type; `fragment_of` a key, as JSON members (`"workflowTask":{…},…`);
        `complete` the payload of an item that is marked incomplete. None of them may raise.
        `fragments` fetches those that other nodes have made; None: there are no others.
        `may_hand_out` False: polls find nothing, because what waits for the log is too much.
        `reserved` task types are for executors: polls of workers never find any.

        `counts_holds` False: the queues do not know yet which tasks workers have from before a
        restart, so types with a concurrency limit hand out nothing until `holds_are_counted`.
        """
        self._queues = queues
        self._owner = owner
        self._clock = clock
        self._metrics = metrics
        self._limits_of = limits_of
        self._fragment_of = fragment_of
        self._complete = complete
        self._fragments = fragments
        self._may_hand_out = may_hand_out
        self._reserved = reserved
        self._lines: dict[str, Line] = {}
        self._deadlines = Deadlines(clock)
        self._poll_data: dict[tuple[str, str | None], PollData] = {}
        self._elsewhere: dict[tuple[str, str | None], PollData] = {}
        self.has_new_domain = asyncio.Event()
        """A domain is polled here that was not, not lately: the other nodes should hear of it."""
        self._unsaved: set[tuple[str, str | None]] = set()
        self._parked = metrics.polls_parked.of()
        self._closed = False
        self._polls_of_several = count_from()
        self._counts_holds = counts_holds
        # Asked for once: to look up the running loop costs a system call.
        self._loop = asyncio.get_running_loop()
        queues.watch(self._wake)

    async def poll(
        self,
        *,
        task_type: str,
        domain: str | None,
        worker_id: str | None,
        count: int,
        timeout_ms: int,
        connected: Callable[[], bool] = lambda: True,
        by_executor: bool = False,
    ) -> Polled:
        """Up to `count` tasks for a worker, as soon as there is one; none after `timeout_ms`.
        `by_executor`: for one of this node's own, which gets what is reserved.

        Cancelled, it loses nothing. A client that has gone (`connected` says False) gets nothing;
        whoever cannot write what is returned calls `hand_back`. When too many polls are parked it
        finds nothing at once: to make it wait would take just what there is too much of. Raises
        InvalidRequest above 5 s.
        """
        check_timeout(timeout_ms)
        request = _Request(task_type, domain or None, worker_id, count, connected)
        if not by_executor:
            self._note(request)
            self._keep_out(request)
        if self._closed or count < 1:
            return Polled(request.queue)
        line = self._lines.get(request.queue)
        first = line is None
        if line is None:
            line = self._lines[request.queue] = Line(request.queue)
        try:
            if first:
                polled = await self._look(request, line)
                if polled.bodies or timeout_ms <= 0:
                    return polled
            return await self._stand(request, line, timeout_ms, front=first)
        finally:
            self._forget(line)

    async def poll_any(
        self,
        *,
        task_types: Sequence[str],
        domain: str | None,
        worker_id: str | None,
        count: int,
        timeout_ms: int,
        connected: Callable[[], bool] = lambda: True,
    ) -> list[Polled]:
        """The same for several task types: up to `count` tasks as soon as there is one of any.

        Each type gets an equal part of `count` before one gets more, and another one is the first
        each time. Whoever cannot write what is returned calls `hand_back` for each.
        """
        check_timeout(timeout_ms)
        names = list(dict.fromkeys(task_types))
        first = next(self._polls_of_several) % len(names)
        requests = [
            _Request(name, domain or None, worker_id, count, connected)
            for name in (*names[first:], *names[:first])
        ]
        for request in requests:
            self._note(request)
            self._keep_out(request)
        if self._closed or count < 1:
            return []
        visited = [(request, self._visit(request.queue)) for request in requests]
        found: list[Polled] = []
        try:
            await self._look_around(visited, found, count, timeout_ms)
        except BaseException:
            for polled in found:
                await self.hand_back(polled)
            raise
        finally:
            for _, line in visited:
                self._leave(line)
        return found

    async def hand_back(self, polled: Polled) -> None:
        """The answer could not be written: its tasks wait again at once, at the head."""
        items, polled.items, polled.bodies = polled.items, [], []
        for item in items:
            self._owner.take_back(item.task_id, delivery=item.delivery)
        if items:
            await self._give_back(polled.queue, items)

    async def _give_back(self, queue: str, items: Sequence[QueueItem]) -> None:
        try:
            await self._queues.hand_back(queue, items)
        except Unavailable as fault:
            # The queue will ask their owners in a while.
            log.info("tasks were not handed back", queue=queue, error=fault.message)

    def last_poll(self, task_type: str, domain: str | None) -> PollData | None:
        """The last poll of a queue that this node has seen or heard of."""
        key = (task_type, domain or None)
        here, elsewhere = self._poll_data.get(key), self._elsewhere.get(key)
        if here is None or elsewhere is None:
            return here or elsewhere
        return here if here.last_poll_ms >= elsewhere.last_poll_ms else elsewhere

    def hear(self, polls: Iterable[PollData]) -> None:
        """What all nodes have told of their polls, in place of what was heard before."""
        self._elsewhere = {(poll.task_type, poll.domain or None): poll for poll in polls}

    def poll_data(self, task_type: str | None = None) -> list[PollData]:
        """The last poll of each queue this node has seen, of one task type or of all."""
        known = self._poll_data.values()
        return [data for data in known if task_type is None or data.task_type == task_type]

    def drain_poll_data(self) -> list[PollData]:
        """What is new since the last call, to be saved."""
        unsaved, self._unsaved = self._unsaved, set()
        return [self._poll_data[key] for key in unsaved]

    def holds_are_counted(self) -> None:
        """The queues know of every task that a worker has: their limits are exact from now on."""
        self._counts_holds = True
        for queue in list(self._lines):
            self._wake(queue, 0)

    @property
    def is_closed(self) -> bool:
        """Whether every poll gets nothing, at once."""
        return self._closed

    def close(self) -> None:
        """Answer all polls at once with nothing, those that still come too."""
        self._closed = True
        for line in self._lines.values():
            line.close()
        self._deadlines.close()

    async def _stand(
        self, request: "_Request", line: Line, timeout_ms: int, *, front: bool
    ) -> Polled:
        """Wait in line for the turn, as often as it takes; look a last time when time is up."""
        if self._parked.value >= PARKED_MAX and not front:
            self._metrics.requests_refused.of("poll", "under_way").inc()
            return Polled(line.queue)
        waiting = Waiting(deadline_ms_of(self._clock.monotonic_ms(), timeout_ms))
        self._parked.inc()
        try:
            while True:
                in_time = await self._wait(waiting, line, front=front)
                if self._closed or (line.taken and not in_time):
                    return Polled(line.queue)
                # A missed wake must not cost more than one poll: the last look is for that.
                polled = await self._look(request, line)
                if polled.bodies or not in_time or not request.connected():
                    return polled
                front = True
        finally:
            waiting.over = True
            self._parked.inc(-1)

    def _visit(self, queue: str) -> Line:
        """The line of a queue, to be kept until `_leave`."""
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = Line(queue)
            line.news = True
        line.visitors += 1
        return line

    def _leave(self, line: Line) -> None:
        line.visitors -= 1
        if line.news and not line.taken:
            # Nobody has looked since; whoever came meanwhile relies on it.
            line.next()
        self._forget(line)

    async def _look_around(
        self,
        visited: "Sequence[tuple[_Request, Line]]",
        found: list[Polled],
        count: int,
        timeout_ms: int,
    ) -> None:
        """Look into all lines that have news, wait in all of them for more; add what there is to
        `found`."""
        connected = visited[0][0].connected
        waiting = Waiting(deadline_ms_of(self._clock.monotonic_ms(), timeout_ms))
        part = -(-count // len(visited))
        turn: Line | None = None
        is_last = timeout_ms <= 0
        try:
            while True:
                looked = True
                while looked and count > 0 and connected():
                    looked = False
                    for request, line in visited:
                        if line is not turn and (line.taken or not line.news):
                            continue
                        if line is turn:
                            turn = None
                        request.count = min(part, count, COUNT_MAX)
                        polled = await self._look(request, line)
                        looked = True
                        if polled.bodies:
                            found.append(polled)
                            count -= len(polled.bodies)
                            if count <= 0:
                                break
                    part = count
                if found or is_last or not connected():
                    return
                turn = await self._wait_in_all(waiting, [line for _, line in visited])
                if self._closed:
                    return
                if turn is None:
                    # A missed wake must not cost more than one poll: the last look is for that.
                    is_last = True
                    for _, line in visited:
                        line.news = True
        finally:
            waiting.over = True
            if turn is not None:
                turn.pass_on()

    async def _wait_in_all(self, waiting: Waiting, lines: Sequence[Line]) -> Line | None:
        """The line whose turn it is now; None when time is up or the desk closes."""
        if waiting.over or self._closed:
            return None
        if self._parked.value >= PARKED_MAX:
            self._metrics.requests_refused.of("poll", "under_way").inc()
            return None
        turn: asyncio.Future[bool] = self._loop.create_future()
        waiting.turn = turn
        for line in lines:
            line.enter(waiting, front=waiting.line is not None)
        self._deadlines.add(waiting)
        self._parked.inc()
        try:
            return waiting.line if await turn else None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                assert waiting.line is not None
                waiting.line.pass_on()
            raise
        finally:
            self._parked.inc(-1)
            for line in lines:
                line.polls.pop(waiting, None)

    async def _wait(self, waiting: Waiting, line: Line, *, front: bool) -> bool:
        """True with the line's turn, False when time is up or the desk closes."""
        if waiting.over or self._closed:
            return False
        turn: asyncio.Future[bool] = self._loop.create_future()
        waiting.turn = turn
        line.enter(waiting, front=front)
        self._deadlines.add(waiting)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                line.pass_on()
            raise
        finally:
            line.polls.pop(waiting, None)

    async def _look(self, request: "_Request", line: Line) -> Polled:
        """With the turn: take what is there, then pass the turn on if there is more."""
        again_ms: int | None = 0
        polled = Polled(line.queue)
        try:
            while request.connected():
                line.begin()
                again_ms = await self._take(request, polled)
                if polled.bodies or not (line.news or has_come(again_ms, self._clock.now_ms())):
                    break
            return polled
        except BaseException:
            await self.hand_back(polled)
            raise
        finally:
            line.taken = False
            now_ms = self._clock.now_ms()
            if line.news or has_come(again_ms, now_ms):
                line.next()
            elif again_ms is not None:
                line.retry_at(again_ms, now_ms)

    async def _take(self, request: "_Request", polled: Polled) -> int | None:
        """Move tasks from the queue to `polled`; returns when there may be more."""
        task_type, queue = request.task_type, polled.queue
        limits = self._limits_of(task_type)
        if limits is not None and limits.concurrent is not None and not self._counts_holds:
            return None
        if not self._may_hand_out():
            self._metrics.requests_refused.of("poll", "backlog").inc()
            return self._clock.now_ms() + RETRY_MS_MAX
        for rounds in count_from(1):
            now_ms = self._clock.now_ms()
            room = request.count - len(polled.items)
            try:
                popped = await self._queues.pop(queue, count=room, now_ms=now_ms, limits=limits)
            except Unavailable as fault:
                # Without the queues workers wait, as they do while there is no work.
                log.debug("a poll looked in vain", queue=queue, error=fault.message)
                return now_ms + RETRY_MS_MAX
            try:
                if self._fragments is not None:
                    await self._fetch_fragments(popped.items, task_type)
                refused = self._hand_over(popped.items, request, polled, now_ms)
            except BaseException:
                left = [item for item in popped.items if item not in polled.items]
                await self.hand_back(polled)
                await self._give_back(queue, left)
                raise
            if refused:
                with suppress(Unavailable):  # It will ask their owners in a while.
                    await self._queues.refuse(queue, refused)
            if not refused or len(polled.items) >= request.count:
                break
            if rounds % _ROUNDS_MAX == 0:
                await asyncio.sleep(0)
        if polled.bodies:
            domain = request.domain or NO_DOMAIN
            self._metrics.task_poll_count.of(task_type, domain).inc(len(polled.bodies))
        if popped.cut_by == "rate":
            self._metrics.task_rate_limited.of(task_type).inc()
        elif popped.cut_by == "concurrent":
            self._metrics.task_concurrent_execution_limited.of(task_type).inc()
        return popped.again_ms

    async def _fetch_fragments(self, items: Sequence[QueueItem], task_type: str) -> None:
        assert self._fragments is not None
        for key in {item.fragment for item in items if item.fragment}:
            if not self._fragments.knows(key):
                await self._fragments.fetch(key, task_type)

    def _hand_over(
        self, items: Sequence[QueueItem], request: "_Request", polled: Polled, now_ms: int
    ) -> list[QueueItem]:
        """Add to `polled` what its owner lets go; returns what it does not."""
        refused: list[QueueItem] = []
        for item in items:
            handed = self._owner.hand_over(
                item.task_id, delivery=item.delivery, worker_id=request.worker_id, at_ms=now_ms
            )
            if handed is None:
                refused.append(item)
            else:
                polled.items.append(item)
                polled.bodies.append(self._answer(item, handed, request))
        return refused

    def _answer(self, item: QueueItem, handed: HandOver, request: "_Request") -> bytes:
        if handed.poll_count == 1:
            self._metrics.task_queue_wait.of(request.task_type).observe(handed.queue_wait_ms / 1000)
        return (
            b'%b,"status":"IN_PROGRESS","startTime":%d,"updateTime":%d,"pollCount":%d,%b'
            b'"callbackAfterSeconds":0,"queueWaitTime":%d,%b}'
        ) % (
            self._complete(item) if item.incomplete else item.payload,
            handed.start_time_ms,
            handed.update_time_ms,
            handed.poll_count,
            request.worker_json,
            handed.queue_wait_ms,
            self._fragment_of(item.fragment),
        )

    def _wake(self, queue: str, at_ms: int) -> None:
        line = self._lines.get(queue)
        if line is None:
            return
        now_ms = self._clock.now_ms()
        if line.taken:
            line.news = True
        elif at_ms <= now_ms:
            line.next()
        else:
            line.retry_at(at_ms, now_ms)

    def _forget(self, line: Line) -> None:
        if line.is_unused and self._lines.get(line.queue) is line:
            line.close()
            del self._lines[line.queue]

    def _keep_out(self, request: "_Request") -> None:
        """Have a worker that asks for what is reserved wait, for it would come again and again."""
        if request.task_type in self._reserved:
            request.queue = _NOBODYS + request.queue

    def _note(self, request: "_Request") -> None:
        self._metrics.task_poll.of(request.task_type).inc()
        key = (request.task_type, request.domain)
        known = self._poll_data.pop(key, None)
        if known is None and len(self._poll_data) >= POLLED_QUEUES_MAX:
            oldest = next(iter(self._poll_data))
            del self._poll_data[oldest]
            self._unsaved.discard(oldest)
            self._metrics.poll_data_dropped.of().inc()
        now_ms = self._clock.now_ms()
        if request.domain and (known is None or known.last_poll_ms < now_ms - _KNOWN_MS):
            self.has_new_domain.set()
        self._poll_data[key] = PollData(*key, request.worker_id, now_ms)
        self._unsaved.add(key)


class _Request:
    """One poll."""

    __slots__ = ("connected", "count", "domain", "queue", "task_type", "worker_id", "worker_json")

    def __init__(
        self,
        task_type: str,
        domain: str | None,
        worker_id: str | None,
        count: int,
        connected: Callable[[], bool],
    ) -> None:
        self.task_type = task_type
        self.domain = domain
        self.queue = queue_name(task_type, domain)
        self.worker_id = worker_id
        self.count = min(count, COUNT_MAX)
        self.connected = connected
        self.worker_json = b""
        if worker_id is not None:
            try:
                self.worker_json = b'"workerId":%b,' % msgspec.json.encode(worker_id)
            except UnicodeEncodeError:
                raise InvalidRequest("workerid is no valid text") from None


def check_timeout(timeout_ms: int) -> None:
    """InvalidRequest: no poll may last that long."""
    if timeout_ms > TIMEOUT_MS_MAX:
        raise InvalidRequest("Long Poll Timeout value cannot be more than 5 seconds")
