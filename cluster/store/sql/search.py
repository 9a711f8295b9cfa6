"""Summaries in SQL: columns for what is asked by, one encoded value for what is shown."""

import sqlite3
from collections.abc import Sequence

import msgspec

from cluster.ids import WorkflowId, from_bytes, to_bytes
from cluster.store.ports import Summary
from cluster.store.sql.batches import Removal, Upsert
from cluster.store.sql.database import Database

_UPSERT = Upsert(
    "summaries",
    key=("workflow_id",),
    columns=("name", "version", "status", "correlation_id", "start_ms", "summary"),
)
_REMOVAL = Removal("summaries", key="workflow_id")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Summary)


class SqlSearchIndex:
    """SearchIndex."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, summaries: Sequence[tuple[Summary, int]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            for summary, revision in summaries:
                values += (
                    to_bytes(summary.workflow_id),
                    summary.name,
                    summary.version,
                    summary.status,
                    summary.correlation_id,
                    summary.start_ms,
                    _ENCODER.encode(summary),
                    revision,
                )
            _UPSERT.run(connection, values)

        await self._database.write(work)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            for workflow_id, upto in removed:
                values += (to_bytes(workflow_id), upto)
            _REMOVAL.run(connection, values)

        await self._database.write(work)

    async def running(
        self, name: str, *, version: int | None, start_ms: int, end_ms: int, limit: int
    ) -> Sequence[WorkflowId]:
        return await self._ids(
            "WHERE name = ? AND status = 'RUNNING' AND start_ms >= ? AND start_ms < ?"
            + ("" if version is None else " AND version = ?")
            + " ORDER BY start_ms, workflow_id LIMIT ?",
            (name, start_ms, end_ms, *(() if version is None else (version,)), limit),
        )

    async def correlated(
        self, name: str, correlation_id: str, *, include_closed: bool, limit: int
    ) -> Sequence[WorkflowId]:
        return await self._ids(
            "WHERE correlation_id = ? AND name = ?"
            + ("" if include_closed else " AND status = 'RUNNING'")
            + " ORDER BY workflow_id LIMIT ?",
            (correlation_id, name, limit),
        )

    async def by_definition(
        self,
        name: str,
        *,
        version: int | None,
        statuses: Sequence[str],
        start_ms: int,
        end_ms: int,
        after: WorkflowId | None,
        limit: int,
    ) -> Sequence[Summary]:
        def work(connection: sqlite3.Connection) -> Sequence[Summary]:
            # `+`: along the ids. By the index of names every page would sort all of a name.
            found = connection.execute(
                "SELECT summary FROM summaries WHERE +name = ? AND start_ms >= ? AND start_ms < ?"
                + " AND workflow_id > ?"
                + ("" if version is None else " AND version = ?")
                + (f" AND status IN ({', '.join('?' * len(statuses))})" if statuses else "")
                + " ORDER BY workflow_id LIMIT ?",
                (
                    name,
                    start_ms,
                    end_ms,
                    b"" if after is None else to_bytes(after),
                    *(() if version is None else (version,)),
                    *statuses,
                    limit,
                ),
            ).fetchall()
            return [_DECODER.decode(summary) for (summary,) in found]

        return await self._database.read(work)

    async def _ids(self, where: str, values: tuple[object, ...]) -> Sequence[WorkflowId]:
        def work(connection: sqlite3.Connection) -> Sequence[WorkflowId]:
            found = connection.execute(f"SELECT workflow_id FROM summaries {where}", values)
            return [WorkflowId(from_bytes(key)) for (key,) in found.fetchall()]

        return await self._database.read(work)
