"""The open set in a dictionary."""

from collections.abc import Sequence

from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.store.ports import OpenEntry


class MemoryOpenSet:
    """OpenSet."""

    def __init__(self, *, shard_count: int) -> None:
        self._shard_count = shard_count
        self._entries: dict[WorkflowId, tuple[OpenEntry, int]] = {}

    async def put(self, entries: Sequence[tuple[OpenEntry, int]]) -> None:
        for entry, revision in entries:
            standing = self._entries.get(entry.workflow_id)
            if standing is None or revision > standing[1]:
                self._entries[entry.workflow_id] = (entry, revision)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        for workflow_id, upto in removed:
            standing = self._entries.get(workflow_id)
            if standing is not None and standing[1] <= upto:
                del self._entries[workflow_id]

    async def scan(
        self, shard: ShardId, *, after: WorkflowId | None, limit: int
    ) -> Sequence[OpenEntry]:
        held = [e for e in self._of(shard) if after is None or e.workflow_id > after]
        return sorted(held, key=lambda entry: entry.workflow_id)[:limit]

    async def due(self, shard: ShardId, *, before_ms: int, limit: int) -> Sequence[OpenEntry]:
        timed = [
            (entry.next_due_ms, entry.workflow_id, entry)
            for entry in self._of(shard)
            if entry.next_due_ms is not None and entry.next_due_ms < before_ms
        ]
        return [entry for _, _, entry in sorted(timed)[:limit]]

    def _of(self, shard: ShardId) -> list[OpenEntry]:
        return [
            entry
            for entry, _ in self._entries.values()
            if shard_of(entry.workflow_id, shard_count=self._shard_count) == shard
        ]
