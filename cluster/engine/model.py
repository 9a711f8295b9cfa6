"""Execution and Task: the state of one workflow in its owner's memory, and the rows it is saved as.

A Task and a Header are saved as they stand (msgspec arrays, `store/codec.py`), so a field is added
at the end only, with a default. Everything else in an Execution is an index over them that
`reindex` builds again after a load.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.engine import payloads
from cluster.engine.definitions import TaskDef, parse_task_def
from cluster.engine.transitions import OPEN_TASK, OPEN_WORKFLOW, TaskStatus, WorkflowStatus
from cluster.ids import TaskId, WorkflowId, task_id

if TYPE_CHECKING:
    from cluster.engine.plan import Node, Plan

REASON_CHARS_MAX = 1_000
"""Longer reasons are cut: they are quoted from level to level, and a header is to stay small."""

NO_SCOPE = 0
"""Scope of tasks that stand outside every loop: the workflow itself."""


WorkItem = tuple[str, int, int]
"""(kind, task number, index): a step decided but not yet taken, see turn.py."""

SCANS = frozenset({"retry", "rerun", "revive", "walk"})
"""Kinds of work items that go through all tasks, see revival.py."""

WITHOUT_TASK = SCANS | {"start", "cancel"}
"""Kinds of work items whose number is not that of a task they stand for."""


_SEQ = attrgetter("seq")


class Task(msgspec.Struct, array_like=True, omit_defaults=False):
    """One attempt of one step. Times are Unix ms, 0 = not yet; `number` is the task's id."""

    number: int
    ref: str
    """Reference name as clients see it, with loop suffixes: `ship__2__1`."""
    base_ref: str
    """Reference name in the definition: `ship`."""
    type: str
    name: str
    """taskDefName: what a worker task is polled by."""
    status: TaskStatus
    seq: int
    scope: int = NO_SCOPE
    """Number of the DO_WHILE task whose round this task belongs to."""
    iteration: int = 0
    origin: int = 0
    """Number of the dynamic FORK task whose branches define this step; 0 = the definition."""
    retry_count: int = 0
    retried_number: int = 0
    """Number of the attempt before this one."""
    retried: bool = False
    executed: bool = False
    """Its successors have been computed."""
    scheduled_ms: int = 0
    first_scheduled_ms: int = 0
    start_ms: int = 0
    end_ms: int = 0
    update_ms: int = 0
    poll_count: int = 0
    delivery: int = 0
    """Counts the times it was put into its queue."""
    start_delay_s: int = 0
    callback_after_s: int = 0
    visible_ms: int = 0
    """When its queue may hand it out: the exact moment, jitter included."""
    wake_ms: int = 0
    """When the engine itself has to come back to it (WAIT, delayed retry of a system task)."""
    worker_id: str = ""
    reason: str = ""
    domain: str = ""
    sub_workflow_id: str = ""
    sub_version: int = 0
    rounds: int = 0
    """DO_WHILE: the round that runs or ran last."""
    token: int = 0
    """Counts the scripts and look-ups this task sent out; an answer to an older one is ignored."""
    input: bytes = payloads.EMPTY
    output: bytes = payloads.EMPTY
    heard: int = 0
    """Child on another shard: mark of the last word heard from it (outbox.py)."""
    asked: int = 0
    """The same: mark of the last order it has to hear before its word counts."""

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_TASK

    @property
    def suffix(self) -> str:
        """The loop rounds this task stands in: "" or "__2" or "__2__1"."""
        return self.ref[len(self.base_ref) :]


class Header(msgspec.Struct, array_like=True):
    """What there is once per workflow, but for its payloads; kept below 2 KB."""

    snapshot: str
    """Content hash of the frozen definition this run follows."""
    name: str
    version: int
    status: WorkflowStatus
    create_ms: int
    update_ms: int = 0
    end_ms: int = 0
    last_retried_ms: int = 0
    priority: int = 0
    correlation_id: str | None = None
    parent_id: str | None = None
    parent_number: int = 0
    reason: str = ""
    failed_number: int = 0
    event: str | None = None
    task_to_domain: dict[str, str] | None = None
    next_number: int = 1
    next_seq: int = 1
    due_ms: int = 0
    """When the engine has to look at this workflow next; 0 = no timer."""
    work: list[WorkItem] = []
    """Steps decided but not yet taken: the continuation of a transition that was cut short."""
    failure_workflow: str = ""
    """The id of the compensating run; "?" while it is still to be started."""
    idempotency_key: str | None = None
    created_by: str = ""
    terminated_output: bool = False
    """Its output came from a TERMINATE task, so the definition's outputParameters do not apply."""
    external_input: str | None = None
    revivals: int = 0
    """Counts how often it went on after its end; each time has a failure workflow of its own."""
    shows_failures: bool = False
    """It ended once: from then on the names of failed tasks are shown, until it starts over."""
    mark: int = 0
    """Counts the orders it gave to other shards (outbox.py)."""
    orders: int = 0
    """How many of them nobody has acknowledged yet."""
    heard: int = 0
    """Mark of the last order it heard from a parent on another shard."""


class Order(msgspec.Struct, array_like=True, frozen=True):
    """A message for another shard, kept until it is acknowledged (outbox.py)."""

    target: str
    kind: str
    number: int = 0
    """The SUB_WORKFLOW task it is about; 0: it goes to the parent."""
    text: str = ""
    """What the kind needs: the hash of a definition, a reason."""


class Message(msgspec.Struct, array_like=True, frozen=True):
    """What somebody sent to the workflow, kept until a PULL_WORKFLOW_MESSAGES task takes it."""

    id: str
    received_ms: int
    payload: bytes
    """A JSON object."""


class Execution:
    """One workflow. Only `engine/` changes it; its shard owns it alone."""

    __slots__ = (
        "by_ref",
        "changed",
        "decoded",
        "dynamic",
        "header",
        "id",
        "input",
        "joins",
        "last_entry",
        "loops",
        "members",
        "messages",
        "newest",
        "open",
        "orders",
        "output",
        "parts",
        "pending",
        "plan",
        "posted",
        "pulling",
        "removed",
        "scripts",
        "task_defs",
        "tasks",
        "timers",
        "variables",
        "waiting",
    )

    def __init__(self, id: WorkflowId, header: Header, plan: "Plan") -> None:
        self.id = id
        self.header = header
        self.plan = plan
        self.input = self.output = self.variables = payloads.EMPTY
        self.task_defs = payloads.EMPTY
        """Task definitions frozen while it ran: name → definition, for dynamic steps."""
        self.tasks: dict[int, Task] = {}
        """All tasks by number, in the order they were scheduled."""
        self.last_entry = 0
        """Position of the last log entry that changed this workflow."""
        # What changed since the rows were last taken (rows.py).
        self.parts = 0
        self.changed: dict[int, int] = {}
        self.removed: list[int] = []
        self.orders: dict[int, Order] = {}
        """By their marks, in order: what other shards have not acknowledged."""
        self.posted: set[int] = set()
        """Marks of the orders and messages that came or went since the rows were last taken."""
        self.messages: dict[int, Message] = {}
        """By marks, which they share with the orders, oldest first."""
        self.timers: list[tuple[int, int]] = []
        """Heap of (due ms, task number); an entry whose task has another due time is stale."""
        self.scripts: set[int] = set()
        """Numbers of tasks that wait for a script: answers to callers wait for these."""
        self.forget_indexes()

    def forget_indexes(self) -> None:
        self.by_ref: dict[str, Task] = {}
        """The latest attempt by full reference name."""
        self.newest: dict[str, Task] = {}
        """The latest attempt by reference name without loop suffixes: what expressions mean."""
        self.pending: dict[int, int] = {}
        """Per scope: its open tasks and work items; a scope at 0 has finished its round."""
        self.open: dict[int, None] = {}
        """Numbers of the open tasks, in order."""
        self.members: dict[int, list[int]] = {}
        """DO_WHILE task number → numbers of the tasks in its rounds."""
        self.loops: dict[int, dict[str, Any]] = {}
        """Open DO_WHILE task number → its output so far (views.py)."""
        self.joins: dict[str, list[int]] = {}
        """Full reference name → numbers of the open JOINs that wait for it."""
        self.waiting: dict[int, int] = {}
        """Number of an open JOIN → how many of its tasks have not ended."""
        self.pulling: dict[int, None] = {}
        """Numbers of the tasks that wait for a message, in order."""
        self.dynamic: dict[int, dict[str, Node]] = {}
        """Dynamic FORK task number → the steps of its branches."""
        self.decoded: dict[int, Any] = {}

    @property
    def is_terminal(self) -> bool:
        return self.header.status not in OPEN_WORKFLOW

    def task_id(self, number: int) -> TaskId:
        return task_id(self.id, number)

    def node_of(self, task: Task) -> "Node":
        """The step of the definition (or of a dynamic fork) that a task is an attempt of."""
        if task.origin:
            return self.dynamic[task.origin][task.base_ref]
        return self.plan.nodes[task.base_ref]

    def definition_of(self, task: Task, node: "Node") -> TaskDef | None:
        """The frozen task definition an attempt follows; None for types that have none."""
        if node.definition is not None:
            return node.definition
        if self.task_defs == payloads.EMPTY:
            return None
        # Frozen for this run alone: a plan, and so its nodes, is shared by many.
        known: dict[str, TaskDef] | None = self.decoded.get(4)
        if known is None:
            wires = self.frozen_task_defs()
            known = self.decoded[4] = {name: parse_task_def(wires[name])[0] for name in wires}
        return known.get(task.name)

    def open_tasks(self) -> Iterator[Task]:
        return (self.tasks[number] for number in self.open)

    def tasks_by_seq(self) -> list[Task]:
        """As Conductor lists them: skipped ones, whose `seq` is 0, come first."""
        return sorted(self.tasks.values(), key=_SEQ)

    # -- payloads, decoded at most once

    def task_input(self, task: Task) -> dict[str, Any]:
        return self._decode(task.number * 2 + 16, task.input)

    def task_output(self, task: Task) -> dict[str, Any]:
        return self._decode(task.number * 2 + 17, task.output)

    def workflow_input(self) -> dict[str, Any]:
        return self._decode(0, self.input)

    def workflow_output(self) -> dict[str, Any]:
        return self._decode(1, self.output)

    def workflow_variables(self) -> dict[str, Any]:
        return self._decode(2, self.variables)

    def frozen_task_defs(self) -> dict[str, Any]:
        return self._decode(3, self.task_defs)

    def _decode(self, key: int, encoded: bytes) -> dict[str, Any]:
        if encoded is payloads.EMPTY or encoded == payloads.EMPTY:
            return {}
        value: dict[str, Any] | None = self.decoded.get(key)
        if value is None:
            value = self.decoded[key] = payloads.load(encoded)
        return value

    # -- changes, each noted for the rows of this transition

    def add_task(self, task: Task) -> None:
        self.tasks[task.number] = task
        self.by_ref[task.ref] = self.newest[task.base_ref] = task
        self.changed[task.number] = ALL_PARTS
        if task.scope:
            self.members.setdefault(task.scope, []).append(task.number)
        if task.status in OPEN_TASK:
            self.open[task.number] = None
            self.hold(task.scope)

    def hold(self, scope: int) -> None:
        """Something in this scope is still to come: an open task or a work item."""
        self.pending[scope] = self.pending.get(scope, 0) + 1

    def release(self, scope: int) -> bool:
        """One thing less to come in this scope; True when it was the last."""
        left = self.pending[scope] = self.pending.get(scope, 0) - 1
        return left == 0

    def touch(self, task: Task) -> None:
        """Its state changed (neither input nor output)."""
        self.changed[task.number] = self.changed.get(task.number, 0) | STATE

    def set_task_input(self, task: Task, encoded: bytes) -> None:
        task.input = encoded
        self.decoded.pop(task.number * 2 + 16, None)
        self.changed[task.number] = self.changed.get(task.number, 0) | STATE | INPUT

    def set_task_output(self, task: Task, encoded: bytes) -> None:
        task.output = encoded
        self.decoded.pop(task.number * 2 + 17, None)
        self.changed[task.number] = self.changed.get(task.number, 0) | STATE | OUTPUT

    def remove_task(self, task: Task) -> None:
        """Forget a task for good: its row is deleted, its number is never given out again."""
        del self.tasks[task.number]
        self.changed.pop(task.number, None)
        self.removed.append(task.number)
        self.decoded.pop(task.number * 2 + 16, None)
        self.decoded.pop(task.number * 2 + 17, None)
        self.open.pop(task.number, None)
        self.pulling.pop(task.number, None)
        self.pending.pop(task.number, None)
        self.dynamic.pop(task.number, None)
        self.loops.pop(task.number, None)
        self.members.pop(task.number, None)
        if task.scope in self.members:
            self.members[task.scope].remove(task.number)
        if self.by_ref.get(task.ref) is task:
            del self.by_ref[task.ref]
        if self.newest.get(task.base_ref) is task:
            del self.newest[task.base_ref]

    def set_input(self, encoded: bytes) -> None:
        self.input = encoded
        self.decoded.pop(0, None)
        self.parts |= INPUT

    def set_output(self, encoded: bytes) -> None:
        self.output = encoded
        self.decoded.pop(1, None)
        self.parts |= OUTPUT

    def set_variables(self, encoded: bytes) -> None:
        self.variables = encoded
        self.decoded.pop(2, None)
        self.parts |= VARIABLES

    def set_task_defs(self, encoded: bytes) -> None:
        self.task_defs = encoded
        self.decoded.pop(3, None)
        self.decoded.pop(4, None)
        self.parts |= TASK_DEFS

    # -- messages

    def add_message(self, message: Message) -> None:
        self.header.mark += 1
        self.messages[self.header.mark] = message
        self.posted.add(self.header.mark)
        self.parts |= STATE

    def drop_message(self, mark: int) -> None:
        """A task has taken it."""
        del self.messages[mark]
        self.posted.add(mark)
        self.parts |= STATE

    # -- timers

    def arm(self, task: Task, due_ms: int) -> None:
        """Have this workflow looked at when `due_ms` comes; see `timers`."""
        heappush(self.timers, (due_ms, task.number))

    def arm_workflow(self, due_ms: int) -> None:
        """The same for the timeout of the whole run."""
        heappush(self.timers, (due_ms, 0))

    def drop_first_timer(self) -> None:
        heappop(self.timers)


STATE, INPUT, OUTPUT, VARIABLES, TASK_DEFS = 1, 2, 4, 8, 16
ALL_PARTS = STATE | INPUT | OUTPUT
