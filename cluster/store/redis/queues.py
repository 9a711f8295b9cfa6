"""TaskQueues and QueueUpkeep on Redis.

A task type lives in one of a fixed number of partitions, all its queues together, so one script
sees everything that its limits are about. A partition is one hash slot: in a Redis Cluster the
partitions are spread over the primaries. What a node asks of a partition in one turn of its loop
is one call of one script (queues.lua, which says what is kept).

Nobody polls Redis for tasks. A pop that leaves a poll waiting notes its node as asleep; a push
wakes as many sleepers as it brings tasks, its own node first: there a poll that waits is woken
before the push is sent, so that the push and its pop are one call. A wake that meets no poll goes
on to the next sleeper. Once a second each node looks after the queues that it sleeps on, because a
wake is only a message.
"""

import asyncio
from binascii import crc32
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from cluster.clock import Clock, Random
from cluster.errors import StoreFault
from cluster.ids import ShardId, TaskId
from cluster.logs import get_log
from cluster.store.queue_ports import (
    Limits,
    Popped,
    QueueItem,
    QueueNews,
    QueueSize,
    Wake,
    task_type_of,
)
from cluster.store.redis.connection import Connection, OutOfMemory, Script
from cluster.store.redis.gathering import Gathering, Operation
from cluster.store.traffic import Traffic

log = get_log(__name__)

_LOOK_EVERY_MS = 1_000
_SLEEP_MS_MAX = 10_000
"""Longer than any poll is parked: who has not looked for this long is not waiting."""
_PASS_ON_S = 0.02
_CHUNK = 1_000
_TOGETHER_BYTES = 1 << 20
_NO_LIMITS = Limits()

_SCRIPT = Script("queues.lua")
# Takes no memory in the end: acknowledgements and pops must go on when pushes cannot.
_SCRIPT_WITHOUT_PUSHES = Script("queues.lua", flags=" flags=allow-oom")


class _Inside(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What of a task the script does not look at."""

    fragment: str
    incomplete: bool
    payload: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Inside).decode
_decode_wakes = msgspec.msgpack.Decoder(list[str | int | float]).decode


class RedisTaskQueues:
    """TaskQueues and QueueUpkeep. `run` must be running."""

    def __init__(
        self,
        connection: Connection,
        *,
        prefix: str,
        partitions: int,
        shard_count: int,
        clock: Clock,
        random: Random,
        traffic: Traffic,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._node = f"{random.bits(64):016x}"
        self._channel = f"{prefix}:wake:{self._node}"
        self._partitions = [
            _Partition(
                connection,
                key=f"{prefix}:{{{number}}}:life",
                node=self._node,
                partitions=partitions,
                shard_count=shard_count,
                random=random,
                wake=self._woken,
                traffic=traffic,
            )
            for number in range(partitions)
        ]
        self._watchers: list[Wake] = []
        self._asleep: dict[str, int] = {}
        """Queue → when a pop of this node last left a poll waiting (monotonic ms)."""
        self._looks: dict[str, int] = {}
        """Queue → pops so far, to see whether a wake is followed by one."""

    async def push(self, batch: Mapping[str, Sequence[QueueItem]], *, now_ms: int) -> None:
        self._wake_own(batch)
        await self._tell(_pushes(batch, now_ms))

    def _wake_own(self, pushed: Iterable[str]) -> None:
        """Whoever waits here looks at once: its pop then goes with the push, in the same call."""
        for queue in pushed:
            if queue in self._asleep:
                self._wake(queue, 0)

    async def pop(
        self, queue: str, *, count: int, now_ms: int, limits: Limits | None = None
    ) -> Popped:
        limits = limits or _NO_LIMITS
        self._looks[queue] = self._looks.get(queue, 0) + 1
        answer = self._of(queue).ask(
            [
                "pop",
                queue,
                task_type_of(queue),
                min(count, _CHUNK),
                now_ms,
                -1 if limits.concurrent is None else limits.concurrent,
                limits.rate,
                limits.rate_window_ms,
            ]
        )
        try:
            given = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda answer: self._return(queue, answer))
            raise
        popped = _popped(given)
        if popped.again_ms is None or popped.again_ms > now_ms:
            self._asleep[queue] = self._clock.monotonic_ms()
        return popped

    def _return(self, queue: str, answer: "asyncio.Future[Any]") -> None:
        """The one who asked for these tasks has gone."""
        if not answer.cancelled() and answer.exception() is None:
            items = _popped(answer.result()).items
            if items:
                self._of(queue).ask(_back(queue, items))

    async def hand_back(self, queue: str, items: Sequence[QueueItem]) -> None:
        if items:
            await _all([self._of(queue).ask(_back(queue, chunk)) for chunk in _chunks(items)])

    async def acknowledge(self, batch: Mapping[str, Sequence[TaskId]]) -> None:
        await self._tell(_acknowledgements(batch))

    async def hold(self, batch: Mapping[str, Mapping[TaskId, int]]) -> None:
        await self._tell(_holds(batch))

    async def tell(self, news: QueueNews, *, now_ms: int) -> None:
        self._wake_own(news.pushed)
        await self._tell(
            chain(
                _pushes(news.pushed, now_ms),
                _holds(news.held),
                _acknowledgements(news.acknowledged),
            )
        )

    async def _tell(self, sized: Iterable[tuple[Operation, int]]) -> None:
        """Carry out what has no answer: what concerns a partition goes together, within bounds."""
        answers: list[asyncio.Future[Any]] = []
        gathered: dict[_Partition, _Together] = {}
        for operation, size in sized:
            partition = self._of(operation[1])
            together = gathered.get(partition)
            if together is None:
                together = gathered[partition] = _Together()
            together.add(operation, size)
            if together.is_full:
                answers.append(partition.ask_all(together.operations, size=together.size))
                del gathered[partition]
        for partition, together in gathered.items():
            answers.append(partition.ask_all(together.operations, size=together.size))
        await _all(answers)

    async def unknown(self, batch: Mapping[str, Sequence[TaskId]]) -> Sequence[TaskId]:
        found = await _all(
            self._of(queue).ask(["unknown", queue, len(chunk), *chunk])
            for queue, task_ids in batch.items()
            for chunk in _chunks(task_ids)
        )
        return [TaskId(one.decode()) for one in chain.from_iterable(found)]

    async def sizes(self, queues: Sequence[str] | None = None) -> dict[str, QueueSize]:
        if queues is None:
            found = await _all(partition.ask(["all_sizes"]) for partition in self._partitions)
        else:
            found = await _all(self._of(queue).ask(["sizes", 1, queue]) for queue in queues)
        return {
            queue.decode(): QueueSize(waiting, held, int(oldest) if oldest else None)
            for sizes in found
            for queue, waiting, held, oldest in _groups(sizes, 4)
        }

    def watch(self, wake: Wake) -> None:
        self._watchers.append(wake)

    # -- QueueUpkeep

    async def expired(self, *, now_ms: int, count: int) -> dict[str, dict[TaskId, int]]:
        found: dict[str, dict[TaskId, int]] = {}
        answers = await _all(
            partition.ask(["expired", now_ms, min(count, _CHUNK)]) for partition in self._partitions
        )
        for answer in answers:
            for queue, task_id, delivery in _groups(answer, 3):
                found.setdefault(queue.decode(), {})[TaskId(task_id.decode())] = int(delivery)
        return found

    async def refuse(self, queue: str, items: Sequence[QueueItem]) -> None:
        await _all(
            self._of(queue).ask(
                [
                    *("refuse", queue, task_type_of(queue), len(chunk)),
                    *chain.from_iterable((item.task_id, item.delivery) for item in chunk),
                ]
            )
            for chunk in _chunks(items)
        )

    async def generation(self) -> str:
        answers = await _all(partition.ask(["look", 0, 0]) for partition in self._partitions)
        assert len(answers) == len(self._partitions)
        return ",".join(partition.generation for partition in self._partitions)

    async def counted(self, generation: str, shards: Sequence[ShardId]) -> None:
        told = zip(self._partitions, generation.split(","), strict=True)
        await _all(
            partition.ask(["counted", seen, len(chunk), *chunk])
            for partition, seen in told
            for chunk in _chunks(shards)
        )

    async def uncounted(self, generation: str, shards: Sequence[ShardId]) -> list[ShardId]:
        told = zip(self._partitions, generation.split(","), strict=True)
        found = await _all(
            partition.ask(["uncounted", seen, len(chunk), *chunk])
            for partition, seen in told
            for chunk in _chunks(shards)
        )
        lacking = {int(shard) for shard in chain.from_iterable(found)}
        return [shard for shard in shards if shard in lacking]

    # -- what runs beside

    async def run(self) -> None:
        """Carry everything out until cancelled."""
        async with asyncio.TaskGroup() as group:
            for partition in self._partitions:
                group.create_task(partition.run())
            group.create_task(self._listen())
            group.create_task(self._look_again())

    async def _listen(self) -> None:
        while True:
            try:
                # What was published before is lost.
                await self._connection.listen(self._channel, self._heard, self._wake_all)
            except StoreFault as fault:
                log.debug("wakes of other nodes are not heard", error=fault.message)
            await asyncio.sleep(_LOOK_EVERY_MS / 1000)

    async def _look_again(self) -> None:
        """What a lost wake would have told; and, by the way, whether something was lost."""
        is_away = False
        while True:
            await asyncio.sleep(_LOOK_EVERY_MS / 1000)
            since_ms = self._clock.monotonic_ms() - _SLEEP_MS_MAX
            self._asleep = {q: at_ms for q, at_ms in self._asleep.items() if at_ms >= since_ms}
            for queue in self._looks.keys() - self._asleep.keys():
                del self._looks[queue]
            sleeping: dict[_Partition, list[str]] = {one: [] for one in self._partitions}
            for queue in self._asleep:
                sleeping[self._of(queue)].append(queue)
            now_ms = self._clock.now_ms()
            try:
                await _all(
                    partition.ask(["look", now_ms, len(queues), *queues])
                    for partition, queues in sleeping.items()
                )
            except StoreFault as fault:
                # Once for each time: it may last for hours.
                if not is_away:
                    log.warning("the queues do not answer", error=fault.message)
                is_away = True
            else:
                if is_away:
                    log.info("the queues answer again")
                is_away = False

    def _heard(self, data: bytes) -> None:
        for queue, at_ms in _groups(_decode_wakes(data), 2):
            self._take_wake(str(queue), int(at_ms))

    def _woken(self, wakes: Sequence[Any]) -> None:
        for queue, at_ms in _groups(wakes, 2):
            self._take_wake(queue.decode(), at_ms)

    def _take_wake(self, queue: str, at_ms: int) -> None:
        if at_ms == 0:
            looks = self._looks.get(queue, 0)
            asyncio.get_running_loop().call_later(_PASS_ON_S, self._pass_on, queue, looks)
        self._wake(queue, at_ms)

    def _pass_on(self, queue: str, looks: int) -> None:
        if self._looks.get(queue, 0) == looks:
            self._of(queue).ask(["pass_on", queue])

    def _wake_all(self) -> None:
        for queue in list(self._asleep):
            self._wake(queue, 0)

    def _wake(self, queue: str, at_ms: int) -> None:
        for watcher in self._watchers:
            watcher(queue, at_ms)

    def _of(self, queue: str) -> "_Partition":
        partitions = self._partitions
        if len(partitions) == 1:
            return partitions[0]
        return partitions[crc32(task_type_of(queue).encode()) % len(partitions)]


class _Partition:
    """One hash slot: its operations, the numbers of its calls, and its generation."""

    def __init__(
        self,
        connection: Connection,
        *,
        key: str,
        node: str,
        partitions: int,
        shard_count: int,
        random: Random,
        wake: Callable[[Sequence[Any]], None],
        traffic: Traffic,
    ) -> None:
        self._connection = connection
        self._traffic = traffic
        self._calls = traffic.of("redis", "queues")
        self._key = key
        self._node = node
        self._partitions = partitions
        self._shard_count = shard_count
        self._random = random
        self._wake = wake
        self._sent = 0
        self._answered = 0
        self._next_generation = self._drawn()
        self.generation = ""
        gathering = Gathering(self._call)
        self.ask = gathering.ask
        self.ask_all = gathering.ask_all
        self.run = gathering.run

    async def _call(self, operations: Sequence[Operation]) -> Sequence[Any]:
        try:
            return await self._run(_SCRIPT, operations)
        except OutOfMemory as full:
            others = [operation for operation in operations if not _needs_memory(operation)]
            if not others:
                raise
            answers = iter(await self._run(_SCRIPT_WITHOUT_PUSHES, others))
            return [full if _needs_memory(one) else next(answers) for one in operations]

    async def _run(self, script: Script, operations: Sequence[Operation]) -> Sequence[Any]:
        self._sent += 1
        number = self._sent
        # One argument: the driver takes its time for each.
        encoded = _encode(list(chain.from_iterable(operations)))
        self._count(operations, len(encoded))
        generation, wakes, *answers = await self._connection.run(
            script,
            self._key,
            [
                self._node,
                number,
                self._answered,
                self._next_generation,
                self._shard_count,
                encoded,
            ],
        )
        self._answered = number
        self.generation = generation.decode()
        if self.generation == self._next_generation:
            self._next_generation = self._drawn()
        if wakes:
            # Whoever awaits an answer must find that its wakes have come before it.
            self._wake(wakes)
        return answers

    def _drawn(self) -> str:
        return f"{self._random.bits(64):016x}/{self._partitions}"

    def _count(self, operations: Sequence[Operation], size: int) -> None:
        self._calls.requests += 1
        self._calls.sent_bytes += size
        for operation in operations:
            self._traffic.of("redis", operation[0]).items += 1


class _Together:
    """Operations that one partition is asked for at a time."""

    __slots__ = ("arguments", "operations", "size")

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.arguments = 0
        self.size = 0

    def add(self, operation: Operation, size: int) -> None:
        self.operations.append(operation)
        self.arguments += len(operation)
        self.size += size

    @property
    def is_full(self) -> bool:
        return self.arguments >= 2 * _CHUNK or self.size >= _TOGETHER_BYTES


def _needs_memory(operation: Operation) -> bool:
    return operation[0] in ("push", "hold")


def _pushes(
    batch: Mapping[str, Sequence[QueueItem]], now_ms: int
) -> Iterator[tuple[Operation, int]]:
    for queue, items in batch.items():
        for chunk in _chunks(items):
            operation: Operation = ["push", queue, task_type_of(queue), now_ms, len(chunk)]
            size = 0
            for item in chunk:
                record = _record(item)
                size += len(record)
                operation += (item.task_id, _raw(record))
            yield operation, size


def _holds(batch: Mapping[str, Mapping[TaskId, int]]) -> Iterator[tuple[Operation, int]]:
    for queue, deliveries in batch.items():
        for chunk in _chunks(list(deliveries.items())):
            told = chain.from_iterable(chunk)
            yield ["hold", queue, task_type_of(queue), len(chunk), *told], 0


def _acknowledgements(batch: Mapping[str, Sequence[TaskId]]) -> Iterator[tuple[Operation, int]]:
    for queue, task_ids in batch.items():
        for chunk in _chunks(task_ids):
            yield ["acknowledge", queue, task_type_of(queue), len(chunk), *chunk], 0


def _record(item: QueueItem) -> bytes:
    inside = _encode(_Inside(item.fragment, item.incomplete, item.payload))
    return b"%d %d %d %b" % (item.delivery, item.priority, item.due_ms, inside)


def _raw(record: bytes) -> msgspec.Raw:
    """As the older msgpack that Redis knows has it: there a text may be any bytes."""
    return msgspec.Raw(b"\xdb%b%b" % (len(record).to_bytes(4, "big"), record))


def _popped(given: Sequence[bytes]) -> Popped:
    items = []
    for task_id, record in _groups(given[2:], 2):
        delivery, priority, due_ms, encoded = record.split(b" ", 3)
        inside = _decode(encoded)
        items.append(
            QueueItem(
                task_id=TaskId(task_id.decode()),
                delivery=int(delivery),
                priority=int(priority),
                due_ms=int(due_ms),
                payload=inside.payload,
                fragment=inside.fragment,
                incomplete=inside.incomplete,
            )
        )
    cut_by: Any = given[1].decode() or None
    return Popped(items, int(given[0]) if given[0] else None, cut_by)


def _back(queue: str, items: Sequence[QueueItem]) -> Operation:
    operation: Operation = ["back", queue, task_type_of(queue), len(items)]
    for item in items:
        operation += (item.task_id, _raw(_record(item)))
    return operation


def _groups(flat: Sequence[Any], size: int) -> Iterable[tuple[Any, ...]]:
    return zip(*(flat[start::size] for start in range(size)), strict=True)


def _chunks(things: Sequence[Any]) -> Iterable[Sequence[Any]]:
    if len(things) <= _CHUNK:
        return (things,) if things else ()
    return (things[start : start + _CHUNK] for start in range(0, len(things), _CHUNK))


async def _all(answers: Iterable["asyncio.Future[Any]"]) -> list[Any]:
    """All answers. The first fault among them, when all are there."""
    waiting = list(answers)
    if len(waiting) == 1:
        return [await waiting[0]]
    given = await asyncio.gather(*waiting, return_exceptions=True)
    for one in given:
        if isinstance(one, BaseException):
            raise one
    return given
