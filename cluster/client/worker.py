"""Functions that do tasks: the decorator, and what becomes of what they return or raise."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

import msgspec

from cluster.client.errors import TaskFailed
from cluster.client.models import InProgress, Task, TaskResult

Output = dict[str, Any] | InProgress | None
Function = Callable[[Task], Output | Awaitable[Output]]

_REASON_LENGTH_MAX = 500


class Worker(NamedTuple):
    """A function for the tasks of one type."""

    task_type: str
    function: Function
    concurrency: int
    batch: int
    domain: str | None
    poll_timeout_ms: int

    def __call__(self, task: Task) -> Output | Awaitable[Output]:
        """The function itself, for tests."""
        return self.function(task)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)


def worker(
    task_type: str,
    *,
    concurrency: int = 10,
    batch: int | None = None,
    domain: str | None = None,
    poll_timeout_ms: int = 5_000,
) -> Callable[[Function], Worker]:
    """Make a function a worker: it takes a Task and returns its output, or InProgress.

    An `async` function runs in the event loop, any other one in a thread. At most `concurrency`
    tasks are in hand at a time, and `batch` (by default as many) are taken in one poll. What it
    raises fails the task: TaskFailed says for good or not, all else may be tried again.
    """
    if concurrency < 1 or (batch is not None and batch < 1):
        raise ValueError("concurrency and batch must be at least 1")

    def made(function: Function) -> Worker:
        return Worker(
            task_type, function, concurrency, batch or concurrency, domain, poll_timeout_ms
        )

    return made


async def result_of(
    worker: Worker, task: Task, *, worker_id: str, threads: Executor | None
) -> TaskResult:
    """Do a task; whatever happens is its result."""
    result = TaskResult(task.workflow_instance_id, task.task_id, "COMPLETED", worker_id=worker_id)
    try:
        if threads is None:
            returned: Any = worker.function(task)
            output = await returned
        else:
            loop = asyncio.get_running_loop()
            output = await loop.run_in_executor(threads, worker.function, task)
        if isinstance(output, InProgress):
            result.status = "IN_PROGRESS"
            result.callback_after_seconds = output.callback_after_s
            output = output.output
        if output is not None and not isinstance(output, dict):
            raise TaskFailed(f"a worker returns a dict, not {type(output).__name__}", terminal=True)
        # Encoded here: what cannot be fails this task, and not a whole batch of results.
        result.output_data = msgspec.Raw(msgspec.json.encode(output or {}))
    except TaskFailed as failure:
        fail(result, failure.reason, terminal=failure.terminal)
        if failure.output:
            result.output_data = failure.output
    except Exception as error:  # noqa: BLE001 - whatever a worker raises is its task's failure
        fail(result, f"{type(error).__name__}: {error}")
    return result


def fail(result: TaskResult, reason: str, *, terminal: bool = False) -> None:
    """Make a result that of a failure."""
    result.status = "FAILED_WITH_TERMINAL_ERROR" if terminal else "FAILED"
    result.reason_for_incompletion = reason[:_REASON_LENGTH_MAX]
    result.output_data = {}
    result.callback_after_seconds = 0
