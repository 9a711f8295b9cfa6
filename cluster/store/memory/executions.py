"""The rows of workflows in dictionaries."""

from collections.abc import Mapping, Sequence

from cluster.ids import WorkflowId
from cluster.store.ports import HEAD_ROWS, HEADER, NO_BUNDLES, Revised, Row


class MemoryExecutionStore:
    """ExecutionStore."""

    def __init__(self) -> None:
        self._workflows: dict[WorkflowId, dict[int, Revised]] = {}

    async def write(
        self, rows: Sequence[Revised], bundles: Mapping[WorkflowId, int] = NO_BUNDLES
    ) -> None:
        for row, revision in rows:
            held = self._workflows.setdefault(row.workflow_id, {})
            standing = held.get(row.number)
            if standing is None or revision > standing[1]:
                held[row.number] = (row, revision)

    async def read(self, workflow_id: WorkflowId) -> Sequence[Row]:
        held = self._workflows.get(workflow_id, {})
        if HEADER in held and not held[HEADER][0].data:
            return []
        return [held[number][0] for number in sorted(held) if held[number][0].data]

    async def headers(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, bytes]:
        found: dict[WorkflowId, bytes] = {}
        for workflow_id in workflow_ids:
            header = self._workflows.get(workflow_id, {}).get(HEADER)
            if header is not None and header[0].data:
                found[workflow_id] = header[0].data
        return found

    async def heads(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, Sequence[Row]]:
        found: dict[WorkflowId, Sequence[Row]] = {}
        for workflow_id in workflow_ids:
            rows = await self.read(workflow_id)
            if rows and rows[0].number == HEADER:
                found[workflow_id] = [row for row in rows if row.number < HEAD_ROWS]
        return found

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        for workflow_id, upto in removed:
            held = self._workflows.setdefault(workflow_id, {})
            for number in [n for n, (_, revision) in held.items() if revision <= upto]:
                del held[number]
            # The mark that stays hides what a late writer with an older epoch puts back.
            held.setdefault(HEADER, (Row(workflow_id, HEADER, b""), upto))
