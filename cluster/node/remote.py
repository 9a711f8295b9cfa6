"""What may be asked of the node that owns a workflow: operations by name, and how they travel."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, get_args

import msgspec

from cluster.clock import Clock
from cluster.engine.effects import StartChild
from cluster.engine.events import Event, Rerun, Retried, TaskHandedBack, TaskPolled
from cluster.engine.model import Execution
from cluster.engine.plan import Plan
from cluster.engine.rows import load, state_rows, task_rows
from cluster.errors import ClusterError, NotOwner, NotSupported, Unavailable
from cluster.ids import ShardId, WorkflowId, shard_of, time_of
from cluster.node.admission import Admission
from cluster.node.link import LinkCall
from cluster.node.link_faults import Fault, fault_of
from cluster.node.many import Refusals, in_lanes, submit_many
from cluster.node.owner import Owner, RerunRequest, StartWorkflow
from cluster.store.ports import ShardRow

_AHEAD_MS_MAX = 60_000
"""An id may have been drawn by a clock that is ahead of this one, but not by more."""
_LATE_MS = 250
"""A call that took longer to get here is taken for a repetition."""
_SLICE = 250
_SLICED_TRIES = 3

encode = msgspec.msgpack.Encoder().encode


# -- events


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """An event on its way."""

    kind: str
    body: msgspec.Raw


_DECODE_EVENT: dict[str, Callable[[msgspec.Raw], Any]] = {
    kind.__name__: msgspec.msgpack.Decoder(kind).decode for kind in get_args(Event)
}


def pack(event: Event) -> Packed:
    return Packed(type(event).__name__, msgspec.Raw(encode(event)))


def unpack(packed: Packed, clock: Clock) -> Event:
    """The event, as of now by the clock of its owner."""
    decode = _DECODE_EVENT.get(packed.kind)
    if decode is None:
        raise NotSupported(f"This node knows no event {packed.kind}")
    event: Event = decode(packed.body)
    return msgspec.structs.replace(event, at_ms=clock.now_ms())


# -- reads


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A committed state. No rows: it is still the one that the caller knows."""

    epoch: int
    entry: int
    snapshot: str = ""
    rows: list[tuple[int, bytes]] = []

    def execution(self, workflow_id: WorkflowId, plan: Plan) -> Execution:
        """A copy of the execution; nobody else changes it."""
        return load(workflow_id, self.rows, lambda _: plan)


UNSEEN = Seen(-1, -1)


async def _see(
    at: "Here", workflow_id: WorkflowId, epoch: int, entry: int, wait_ms: int, is_settled: bool
) -> Seen:
    """The state; one that the caller knows is waited for to change."""
    owner = at.owner
    shards = owner.shards
    execution = await (owner.view if is_settled else owner.look)(workflow_id)
    if wait_ms and at.stands_at(execution) == (epoch, entry):

        def has_changed(execution: Execution) -> bool:
            return at.stands_at(execution) != (epoch, entry)

        if not await shards.wait_until(workflow_id, has_changed, wait_ms):
            return Seen(epoch, entry)
        execution = await owner.look(workflow_id)
    for _ in range(_SLICED_TRIES):
        stood = at.stands_at(execution)
        tasks = list(execution.tasks.values())
        rows = state_rows(execution)
        for begin in range(0, len(tasks), _SLICE):
            if begin:
                # Nobody waits for the whole of a large run.
                await asyncio.sleep(0)
                execution = await owner.look(workflow_id)
                if at.stands_at(execution) != stood:
                    break
            rows += task_rows(tasks[begin : begin + _SLICE])
        else:
            return Seen(*stood, execution.plan.hash, rows)
    # It changes all the time: in one go, then.
    rows = state_rows(execution) + task_rows(execution.tasks.values())
    return Seen(*at.stands_at(execution), execution.plan.hash, rows)


# -- operations


class Here:
    """This node, as others see it."""

    def __init__(self, owner: Owner, clock: Clock, shard_count: int, admission: Admission) -> None:
        self.owner = owner
        self.admission = admission
        self.clock = clock
        self._shard_count = shard_count
        self.drain: Callable[[], Awaitable[None]]
        """Begins to hand this node's shards over."""
        self.heard: Callable[[Sequence[ShardRow]], None]
        """Another node tells of shards that have another owner now."""

    def shard_of(self, workflow_id: WorkflowId) -> ShardId:
        return shard_of(workflow_id, shard_count=self._shard_count)

    def serves(self, workflow_id: WorkflowId) -> bool:
        return self.owner.serves(workflow_id)

    def is_served_in(self, shard: ShardId, epoch: int) -> bool:
        """Whether a call is meant for this owner of the shard. NotOwner: there is no log now."""
        return self.owner.shards.epochs.get(shard) == epoch

    def stands_at(self, execution: Execution) -> tuple[int, int]:
        """What tells one state of a workflow from another."""
        shards = self.owner.shards
        return shards.epochs.get(self.shard_of(execution.id), -1), execution.last_entry


class Operation:
    """One thing that can be asked for."""

    def __init__(
        self,
        run: Callable[..., Awaitable[Any]],
        *,
        takes: Any,
        gives: Any = None,
        knows_repeats: bool = False,
    ) -> None:
        """`run(here, *arguments)`; `knows_repeats`: the last argument says that it may have been
        done before."""
        self.name = run.__name__.strip("_")
        self.run = run
        self.decode_arguments = msgspec.msgpack.Decoder(takes).decode
        self.decode_value = msgspec.msgpack.Decoder(gives).decode
        self.knows_repeats = knows_repeats

    def repeated(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a repetition."""
        return (*arguments[:-1], True) if self.knows_repeats else arguments


async def _start(at: Here, workflow_id: WorkflowId, request: StartWorkflow, repeated: bool) -> None:
    _refuse_far_ahead(workflow_id, at.clock.now_ms())
    await at.owner.start(workflow_id, request, repeated=repeated)


async def _start_once(
    at: Here, workflow_id: WorkflowId, request: StartWorkflow, key: str
) -> WorkflowId:
    _refuse_far_ahead(workflow_id, at.clock.now_ms())
    return await at.owner.start_once(workflow_id, request, key)


async def _start_child(at: Here, parent_id: WorkflowId, child: StartChild, repeated: bool) -> bool:
    return await at.owner.start_child(parent_id, child, repeated=repeated)


async def _save_schedule(at: Here, schedule_id: WorkflowId, saved: bytes) -> None:
    await at.owner.save_schedule(schedule_id, saved)


async def _submit(at: Here, workflow_id: WorkflowId, event: Packed) -> None:
    await at.owner.submit(workflow_id, unpack(event, at.clock))


async def _submit_many(
    at: Here, events: list[tuple[WorkflowId, Packed, int]]
) -> list[tuple[int, Fault]]:
    """Decide events, each if its shard is served in that epoch; returns the refusals by place."""
    unpacked: list[tuple[WorkflowId, Event]] = []
    places: list[int] = []
    faults: list[tuple[int, Fault]] = []
    for place, (workflow_id, event, epoch) in enumerate(events):
        if at.is_served_in(at.shard_of(workflow_id), epoch):
            places.append(place)
            unpacked.append((workflow_id, unpack(event, at.clock)))
        else:
            faults.append((place, fault_of(NotOwner(f"{workflow_id} is not served in {epoch}"))))

    async def submit(place: int) -> None:
        await at.owner.submit(*unpacked[place])

    async def usual(left: Sequence[int], refusals: Refusals) -> None:
        await in_lanes(left, submit, refusals)

    refusals = await submit_many(at.owner, unpacked, usual)
    return faults + [(places[one], fault_of(refusal)) for one, refusal in refusals.items()]


async def _deliver(at: Here, workflow_id: WorkflowId, event: Packed) -> None:
    await at.owner.deliver(workflow_id, unpack(event, at.clock))


async def _revive(at: Here, workflow_id: WorkflowId, event: Packed) -> None:
    unpacked = unpack(event, at.clock)
    assert isinstance(unpacked, Retried | Rerun)
    await at.owner.revive(workflow_id, unpacked)


async def _open_by_ref(at: Here, workflow_id: WorkflowId, ref: str) -> int | None:
    return await at.owner.open_by_ref(workflow_id, ref)


async def _waiting(at: Here, workflow_id: WorkflowId) -> tuple[WorkflowId, int] | None:
    return await at.owner.waiting(workflow_id)


async def _restart(at: Here, workflow_id: WorkflowId, use_latest: bool) -> None:
    await at.owner.restart(workflow_id, use_latest)


async def _retry(at: Here, workflow_id: WorkflowId, resume_sub_workflows: bool) -> None:
    await at.owner.retry(workflow_id, resume_sub_workflows)


async def _rerun(at: Here, workflow_id: WorkflowId, request: RerunRequest) -> WorkflowId:
    return await at.owner.rerun(workflow_id, request)


async def _remove(at: Here, workflow_id: WorkflowId, archive: bool) -> None:
    await at.owner.remove(workflow_id, archive)


async def _note(at: Here, notes: list[tuple[WorkflowId, Packed]]) -> list[int]:
    """Note what was done with tasks; returns the places of those that are not served here."""
    elsewhere = []
    for place, (workflow_id, event) in enumerate(notes):
        unpacked = unpack(event, at.clock)
        assert isinstance(unpacked, TaskPolled | TaskHandedBack)
        if at.owner.shards.is_served(workflow_id):
            at.owner.note(workflow_id, unpacked)
        else:
            elsewhere.append(place)
    return elsewhere


async def _requeue(at: Here, task_type: str) -> int:
    return await at.owner.requeue(task_type)


async def _catch_up(at: Here) -> None:
    await at.owner.catch_up()


async def _drain(at: Here) -> None:
    await at.drain()


async def _moved(at: Here, rows: list[ShardRow]) -> None:
    at.heard(rows)


def _refuse_far_ahead(workflow_id: WorkflowId, now_ms: int) -> None:
    if time_of(workflow_id) > now_ms + _AHEAD_MS_MAX:
        # Not the caller's fault, for nodes draw ids; and clocks that are off are put right.
        raise Unavailable(f"The id {workflow_id} was drawn by a clock that is far ahead")


START = Operation(_start, takes=tuple[WorkflowId, StartWorkflow, bool], knows_repeats=True)
START_ONCE = Operation(_start_once, takes=tuple[WorkflowId, StartWorkflow, str], gives=WorkflowId)
START_CHILD = Operation(
    _start_child, takes=tuple[WorkflowId, StartChild, bool], gives=bool, knows_repeats=True
)
SAVE_SCHEDULE = Operation(_save_schedule, takes=tuple[WorkflowId, bytes])
SUBMIT = Operation(_submit, takes=tuple[WorkflowId, Packed])
SUBMIT_MANY = Operation(
    _submit_many,
    takes=tuple[list[tuple[WorkflowId, Packed, int]]],
    gives=list[tuple[int, Fault]],
)
DELIVER = Operation(_deliver, takes=tuple[WorkflowId, Packed])
REVIVE = Operation(_revive, takes=tuple[WorkflowId, Packed])
SEE = Operation(_see, takes=tuple[WorkflowId, int, int, int, bool], gives=Seen)
OPEN_BY_REF = Operation(_open_by_ref, takes=tuple[WorkflowId, str], gives=int | None)
WAITING = Operation(_waiting, takes=tuple[WorkflowId], gives=tuple[WorkflowId, int] | None)
RESTART = Operation(_restart, takes=tuple[WorkflowId, bool])
RETRY = Operation(_retry, takes=tuple[WorkflowId, bool])
RERUN = Operation(_rerun, takes=tuple[WorkflowId, RerunRequest], gives=WorkflowId)
REMOVE = Operation(_remove, takes=tuple[WorkflowId, bool])
NOTE = Operation(_note, takes=tuple[list[tuple[WorkflowId, Packed]]], gives=list[int])
REQUEUE = Operation(_requeue, takes=tuple[str], gives=int)
CATCH_UP = Operation(_catch_up, takes=tuple[()])
DRAIN = Operation(_drain, takes=tuple[()])
MOVED = Operation(_moved, takes=tuple[list[ShardRow]])

OPERATIONS = {
    one.name: one
    for one in (
        *(START, START_ONCE, START_CHILD, SUBMIT, SUBMIT_MANY, DELIVER, REVIVE, SEE),
        *(OPEN_BY_REF, WAITING, RESTART, RETRY, RERUN, REMOVE, NOTE, REQUEUE, CATCH_UP, DRAIN),
        *(SAVE_SCHEDULE, MOVED),
    )
}


async def carry_out(at: Here, call: LinkCall) -> bytes:
    """Do what another node asks for. NotOwner: it was meant for another epoch of the shard."""
    operation = OPERATIONS.get(call.operation)
    if operation is None:
        # A newer version of this asks; it will find another way, or wait.
        raise NotSupported(f"This node knows no operation {call.operation}")
    if call.shard >= 0 and not at.is_served_in(ShardId(call.shard), call.epoch):
        raise NotOwner(f"Shard {call.shard} is not served here in epoch {call.epoch}")
    try:
        arguments = operation.decode_arguments(call.arguments)
    except msgspec.DecodeError as error:
        raise ClusterError(f"The arguments of {call.operation} do not fit: {error}") from None
    if call.sent_ms and abs(at.clock.now_ms() - call.sent_ms) > _LATE_MS:
        # Held up so long, it may have been given up, repeated, done, and forgotten since. One that
        # comes from the future says that the clocks differ, so that nobody knows.
        arguments = operation.repeated(arguments)
    is_repeated = operation.knows_repeats and arguments[-1]
    if operation not in (START, START_ONCE) or is_repeated:
        return encode(await operation.run(at, *arguments))
    # Its client came to the other node, but it is this one that has to have the time for it.
    admitted = at.admission.starts.enter_or_refuse()
    is_done = False
    try:
        value = await operation.run(at, *arguments)
        is_done = True
    finally:
        admitted.leave(done=is_done)
    return encode(value)
