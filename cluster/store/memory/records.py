"""Task logs, poll data and keyed values in dictionaries."""

from collections.abc import Mapping, Sequence

from cluster.ids import TaskId, WorkflowId, workflow_of
from cluster.store.ports import TASK_LOG_LINES_MAX, PollData, TaskLog


class MemoryRecordStore:
    """RecordStore."""

    def __init__(self) -> None:
        self._task_logs: dict[TaskId, list[TaskLog]] = {}
        self._polls: dict[tuple[str, str], PollData] = {}
        self._values: dict[str, dict[str, bytes]] = {}

    async def append_task_logs(self, lines: Sequence[TaskLog]) -> None:
        for line in lines:
            kept = self._task_logs.setdefault(line.task_id, [])
            kept.append(line)
            del kept[:-TASK_LOG_LINES_MAX]

    async def task_logs(self, task_id: TaskId) -> Sequence[TaskLog]:
        return list(self._task_logs.get(task_id, []))

    async def remove_task_logs(self, workflow_id: WorkflowId) -> None:
        for task_id in [t for t in self._task_logs if workflow_of(t) == workflow_id]:
            del self._task_logs[task_id]

    async def put_poll_data(self, polls: Sequence[PollData]) -> None:
        for poll in polls:
            standing = self._polls.get((poll.task_type, poll.domain))
            if standing is None or poll.last_poll_ms >= standing.last_poll_ms:
                self._polls[poll.task_type, poll.domain] = poll

    async def poll_data(self, task_type: str | None) -> Sequence[PollData]:
        return [
            poll for (polled, _), poll in sorted(self._polls.items()) if task_type in (None, polled)
        ]

    async def polls_with_domain(self) -> Sequence[PollData]:
        return [poll for poll in self._polls.values() if poll.domain]

    async def put(self, kind: str, values: Mapping[str, bytes | None]) -> None:
        held = self._values.setdefault(kind, {})
        for key, value in values.items():
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value

    async def get(self, kind: str, key: str) -> bytes | None:
        return self._values.get(kind, {}).get(key)

    async def page(
        self, kind: str, *, prefix: str, after: str | None, limit: int
    ) -> Sequence[tuple[str, bytes]]:
        held = sorted(
            (key, value)
            for key, value in self._values.get(kind, {}).items()
            if key.startswith(prefix) and (after is None or key > after)
        )
        return held[:limit]
