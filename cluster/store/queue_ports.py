"""TaskQueues: the port between shards, which push tasks, and polls, which pop them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from cluster.ids import ShardId, TaskId

Wake = Callable[[str, int], None]
"""Called with a queue's name and the Unix ms from which a pop may find something (0 = now)."""


HAND_OUT_MS = 30_000
"""A task that was handed out and of which nothing was heard for this long: its owner is asked."""


class QueueItem(msgspec.Struct, frozen=True, gc=False):
    """One delivery of a task to the workers of its type."""

    task_id: TaskId
    delivery: int
    """Counts up from push to push of the same task: the highest known wins."""
    priority: int
    """0…99, higher first."""
    due_ms: int
    """Not handed out before this Unix time."""
    payload: bytes
    """The polled task as a JSON object that lacks its closing brace and what a poll sets."""
    fragment: str
    """Names the constant part of the answer (workflowTask, taskDefinition): a poll joins it in."""
    incomplete: bool = False
    """Secrets or runtime metadata must be filled in at hand-over; they never enter a queue."""


class Limits(msgspec.Struct, frozen=True, gc=False):
    """What a task definition allows over all domains of its type."""

    concurrent: int | None = None
    """Tasks in workers' hands at a time, at least 1; None = no limit."""
    rate: int = 0
    """Tasks handed out within any window of `rate_window_ms`; 0 = no limit."""
    rate_window_ms: int = 1000


class Popped(msgspec.Struct, frozen=True, gc=False):
    """What one pop found."""

    items: list[QueueItem]
    again_ms: int | None
    """When a further pop may find something without any wake: at or before the given `now_ms` =
    there is more at once; later = a task falls due or a rate window opens; None = only a wake."""
    cut_by: Literal["concurrent", "rate"] | None = None
    """The limit that kept a due task back."""


class QueueSize(msgspec.Struct, frozen=True, gc=False):
    """Depth of one queue."""

    waiting: int
    """Tasks that no worker has, those not yet due included."""
    held: int
    """Tasks handed out and not acknowledged."""
    oldest_due_ms: int | None
    """The earliest due time of a waiting task; in the future if none is due yet."""


class QueueNews(msgspec.Struct, frozen=True, gc=False):
    """What owners have to say of tasks, all by queue. No task is named twice, but that pushes of
    one may follow each other."""

    pushed: dict[str, list[QueueItem]]
    held: dict[str, dict[TaskId, int]]
    acknowledged: dict[str, list[TaskId]]


def queue_name(task_type: str, domain: str | None) -> str:
    """`taskType`, or `domain:taskType` with a domain; an empty domain is none."""
    return f"{domain}:{task_type}" if domain else task_type


def task_type_of(queue: str) -> str:
    """The task type whose limits a queue obeys."""
    # A type with a colon in its name meets the queue of the domain before it, as in Conductor.
    return queue.partition(":")[2] or queue


class TaskQueues(Protocol):
    """Tasks waiting for workers, one queue per task type and domain.

    A task is waiting (pushed), held (handed out by `pop`) or unknown. Queues hold nothing that the
    store does not: every call may be repeated, and after a loss owners push again. The calls of an
    owner for one task arrive in the order it made them. All raise Unavailable when the queues
    cannot be reached; then the outcome is unknown and the call is repeated.
    """

    async def push(self, batch: Mapping[str, Sequence[QueueItem]], *, now_ms: int) -> None:
        """Make tasks wait in their queues (queue → tasks), or move them: a delivery above the known
        one replaces it wherever it is, and frees its slot if it was held; any other is ignored.
        """

    async def pop(
        self, queue: str, *, count: int, now_ms: int, limits: Limits | None = None
    ) -> Popped:
        """Hand out up to `count` due tasks: highest priority first, then earliest due, then (as
        exactly as the implementation can) in order of arrival. Each is held until it is
        acknowledged, handed back or pushed with a higher delivery: nothing expires by itself.

        `limits` hold over all domains of the task type and are never exceeded. What is taken
        counts against the rate even if it is handed back. Cancelled, it has taken nothing.
        """

    async def hand_back(self, queue: str, items: Sequence[QueueItem]) -> None:
        """These could not be delivered: they wait again, before their equals. Ignored for a task
        that is not held with that very delivery."""

    async def acknowledge(self, batch: Mapping[str, Sequence[TaskId]]) -> None:
        """Forget tasks (queue → ids) wherever they are, and free their slots."""

    async def tell(self, news: QueueNews, *, now_ms: int) -> None:
        """`push`, `acknowledge` and the upkeep's `hold`, in any order: one call for three."""

    async def unknown(self, batch: Mapping[str, Sequence[TaskId]]) -> Sequence[TaskId]:
        """Those among some tasks (queue → ids) that neither wait nor are held, in no order."""

    async def sizes(self, queues: Sequence[str] | None = None) -> dict[str, QueueSize]:
        """Depth of the named queues, or of all that hold a task; unknown ones are empty."""

    def watch(self, wake: Wake) -> None:
        """From now on call `wake` too whenever a pop may find what an earlier one did not: a push,
        a slot that frees, a task handed back. A wake may be in vain; a missed one only delays."""


class QueueUpkeep(Protocol):
    """What owners do so that the queues agree with the store, beyond their pushes.

    Implemented by whatever implements TaskQueues; raises as that does.
    """

    async def expired(self, *, now_ms: int, count: int) -> Mapping[str, Mapping[TaskId, int]]:
        """Some tasks (queue → id → delivery) that `pop` has handed out, HAND_OUT_MS ago or more,
        and that nobody has acknowledged, handed back, pushed or held since.

        Ask their owners, who acknowledge them, hold them or hand them back. Each is told once
        in HAND_OUT_MS, to one caller.
        """

    async def hold(self, batch: Mapping[str, Mapping[TaskId, int]]) -> None:
        """Workers have these tasks (queue → id → delivery), says their owner after a restart: they
        count against the limits, even beyond them."""

    async def refuse(self, queue: str, items: Sequence[QueueItem]) -> None:
        """These were popped, but their owners do not want them handed out: forget each that is
        still held with that very delivery, and free its slot. A later one may be there already."""

    async def generation(self) -> str:
        """Another one than before: some or all of what was in the queues may be lost. Every owner
        pushes and holds again what is open in its shards, then says so by `counted`."""

    async def counted(self, generation: str, shards: Sequence[ShardId]) -> None:
        """All that is open in these shards was pushed and held since `generation` began; ignored
        if that is over. Until it was said of all shards, a type with a concurrency limit hands out
        nothing: nobody knows how many workers are at it."""

    async def uncounted(self, generation: str, shards: Sequence[ShardId]) -> Sequence[ShardId]:
        """Those among some shards of which `counted` was not said in `generation`; all of them, if
        that is over."""


class Queues(TaskQueues, QueueUpkeep, Protocol):
    """What every implementation is: the queues, and what keeps them right."""
