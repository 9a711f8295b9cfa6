"""Tasks that a queue handed out and heard nothing of: their owners are asked."""

import asyncio
from collections.abc import Awaitable, Callable

from cluster.clock import Clock
from cluster.engine.events import TaskUnheard
from cluster.errors import ClusterError, NotFound
from cluster.ids import TaskId, WorkflowId, number_of, workflow_of
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.store.queue_ports import Queues

log = get_log(__name__)

_LOOK_EVERY_S = 2
_COUNT = 500
_AT_ONCE = 32


class HandOuts:
    """Sees to it that a task comes to a worker though the node that popped it has died.

    Every node asks for any task: the queues tell each to one of them, and again after a while if
    its owner could not be reached.
    """

    def __init__(
        self,
        queues: Queues,
        *,
        submit: Callable[[WorkflowId, TaskUnheard], Awaitable[None]],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`submit` takes an event to the owner of a workflow, wherever that is."""
        self._queues = queues
        self._submit = submit
        self._clock = clock
        self._asked = metrics.tasks_unheard.of()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                while await self.look() >= _COUNT:
                    pass
            except ClusterError as error:
                log.info("hand-outs were not looked at", error=error.message)

    async def look(self) -> int:
        """Ask the owners of tasks that have been out for long; returns how many there were."""
        found = await self._queues.expired(now_ms=self._clock.now_ms(), count=_COUNT)
        tasks = [
            (queue, task_id, delivery)
            for queue, deliveries in found.items()
            for task_id, delivery in deliveries.items()
        ]
        self._asked.inc(len(tasks))
        for start in range(0, len(tasks), _AT_ONCE):
            some = tasks[start : start + _AT_ONCE]
            await asyncio.gather(*(self._ask(*task) for task in some))
        return len(tasks)

    async def _ask(self, queue: str, task_id: TaskId, delivery: int) -> None:
        event = TaskUnheard(self._clock.now_ms(), number_of(task_id), queue, delivery)
        try:
            await self._submit(workflow_of(task_id), event)
        except NotFound:
            # The workflow was removed: nobody is left to ask.
            await self._queues.acknowledge({queue: [task_id]})
        except ClusterError as error:
            log.info("an owner was not reached", task_id=task_id, error=error.message)
