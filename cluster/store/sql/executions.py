"""The rows of workflows in SQL."""

import sqlite3
from collections.abc import Mapping, Sequence

from cluster.ids import WorkflowId, to_bytes
from cluster.store.ports import HEAD_ROWS, HEADER, NO_BUNDLES, Revised, Row
from cluster.store.sql.batches import Lookup, Upsert
from cluster.store.sql.database import Database

_UPSERT = Upsert("executions", key=("workflow_id", "number"), columns=("data",))
_HEADERS = Lookup(
    f"SELECT workflow_id, data FROM executions WHERE number = {HEADER} AND workflow_id IN (VALUES",
    ")",
    columns=1,
)
_HEADS = Lookup(
    "SELECT workflow_id, number, data FROM executions WHERE workflow_id IN (VALUES",
    f") AND number < {HEAD_ROWS}",
    columns=1,
)


class SqlExecutionStore:
    """ExecutionStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(
        self, rows: Sequence[Revised], bundles: Mapping[WorkflowId, int] = NO_BUNDLES
    ) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            last: WorkflowId | None = None
            key = b""
            for row, revision in rows:
                if row.workflow_id != last:
                    last = row.workflow_id
                    key = to_bytes(last)
                values += (key, row.number, row.data, revision)
            _UPSERT.run(connection, values)

        await self._database.write(work)

    async def read(self, workflow_id: WorkflowId) -> Sequence[Row]:
        def work(connection: sqlite3.Connection) -> Sequence[Row]:
            found = connection.execute(
                "SELECT number, data FROM executions WHERE workflow_id = ? ORDER BY number",
                (to_bytes(workflow_id),),
            ).fetchall()
            if found and found[0][0] == HEADER and not found[0][1]:
                return []
            return [Row(workflow_id, number, data) for number, data in found if data]

        return await self._database.read(work)

    async def headers(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, bytes]:
        def work(connection: sqlite3.Connection) -> Mapping[WorkflowId, bytes]:
            ids = {to_bytes(workflow_id): workflow_id for workflow_id in workflow_ids}
            found = _HEADERS.fetch(connection, list(ids))
            return {ids[key]: data for key, data in found if data}  # type: ignore[index,misc]

        return await self._database.read(work)

    async def heads(self, workflow_ids: Sequence[WorkflowId]) -> Mapping[WorkflowId, Sequence[Row]]:
        def work(connection: sqlite3.Connection) -> Mapping[WorkflowId, Sequence[Row]]:
            ids = {to_bytes(workflow_id): workflow_id for workflow_id in workflow_ids}
            found: dict[WorkflowId, list[Row]] = {}
            for key, number, data in _HEADS.fetch(connection, list(ids)):
                workflow_id = ids[key]  # type: ignore[index]
                found.setdefault(workflow_id, []).append(Row(workflow_id, number, data))  # type: ignore[arg-type]
            return {
                workflow_id: sorted((row for row in rows if row.data), key=lambda row: row.number)
                for workflow_id, rows in found.items()
                if any(row.number == HEADER and row.data for row in rows)
            }

        return await self._database.read(work)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for workflow_id, upto in removed:
                key = to_bytes(workflow_id)
                connection.execute(
                    "DELETE FROM executions WHERE workflow_id = ? AND revision <= ?", (key, upto)
                )
                # The mark that stays hides what a late writer with an older epoch puts back.
                connection.execute(
                    "INSERT INTO executions (workflow_id, number, data, revision)"
                    " VALUES (?, ?, ?, ?) ON CONFLICT (workflow_id, number) DO NOTHING",
                    (key, HEADER, b"", upto),
                )

        await self._database.write(work)
