"""Summaries in SQL: columns for what is asked by, one encoded value for what is shown."""

import sqlite3
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from cluster.ids import WorkflowId, from_bytes, to_bytes
from cluster.store.documents import term
from cluster.store.ports import Found, Summary
from cluster.store.queries import HITS_MAX, ROWS_MAX, Query
from cluster.store.sql.batches import Lookup, ManyRows, Removal, Upsert
from cluster.store.sql.database import Database
from cluster.store.sql.finding import find, summary_of

_UPSERT = Upsert(
    "summaries",
    key=("workflow_id",),
    columns=(
        *("name", "version", "status", "correlation_id", "start_ms", "update_ms", "end_ms"),
        *("priority", "parent_id", "summary", "inputs"),
    ),
    kept=("inputs",),
)
_TERMS = ManyRows(
    "INSERT INTO input_values (term, workflow_id) VALUES",
    "ON CONFLICT (term, workflow_id) DO NOTHING",
    columns=2,
)
_REMOVAL = Removal("summaries", key="workflow_id")
_INPUTS = Lookup(
    "SELECT workflow_id, inputs FROM summaries WHERE workflow_id IN (VALUES", ")", columns=1
)
_ENCODER = msgspec.msgpack.Encoder()
_INPUTS_DECODER = msgspec.msgpack.Decoder(dict[str, str])


class SqlSearchIndex:
    """SearchIndex."""

    def __init__(self, database: Database, searches: Database) -> None:
        """`searches` is the same file for what may take long, so that it holds up nobody else."""
        self._database = database
        self._searches = searches

    async def write(self, summaries: Sequence[tuple[Summary, int]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            terms: list[object] = []
            for summary, revision in summaries:
                key = to_bytes(summary.workflow_id)
                inputs = summary.inputs
                if inputs is not None:
                    summary = replace(summary, inputs=None)
                    for name, text in inputs.items():
                        terms += (term(name, text), key)
                values += (
                    key,
                    summary.name,
                    summary.version,
                    summary.status,
                    summary.correlation_id,
                    summary.start_ms,
                    summary.update_ms,
                    summary.end_ms,
                    summary.priority,
                    summary.parent_workflow_id,
                    _ENCODER.encode(summary),
                    None if inputs is None else _ENCODER.encode(inputs),
                    revision,
                )
            _UPSERT.run(connection, values)
            _TERMS.run(connection, terms)

        await self._database.write(work)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            for workflow_id, upto in removed:
                values += (to_bytes(workflow_id), upto)
            keys = values[::2]
            found = _INPUTS.fetch(connection, keys)
            _REMOVAL.run(connection, values)
            gone = set(keys) - {key for key, _ in _INPUTS.fetch(connection, keys)}
            terms = [
                (term(name, text), key)
                for key, inputs in found
                if key in gone and inputs is not None
                for name, text in _INPUTS_DECODER.decode(inputs).items()  # type: ignore[arg-type]
            ]
            connection.executemany(
                "DELETE FROM input_values WHERE term = ? AND workflow_id = ?", terms
            )

        await self._database.write(work)

    async def find(
        self,
        query: Query,
        *,
        start: int,
        size: int,
        hits_max: int = HITS_MAX,
        rows_max: int = ROWS_MAX,
    ) -> Found:
        def work(connection: sqlite3.Connection) -> Found:
            return find(
                connection, query, start=start, size=size, hits_max=hits_max, rows_max=rows_max
            )

        return await self._searches.read(work)

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
                "SELECT summary, inputs FROM summaries"
                + " WHERE +name = ? AND start_ms >= ? AND start_ms < ? AND workflow_id > ?"
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
            return [summary_of(summary, inputs) for summary, inputs in found]

        return await self._database.read(work)

    async def _ids(self, where: str, values: tuple[object, ...]) -> Sequence[WorkflowId]:
        def work(connection: sqlite3.Connection) -> Sequence[WorkflowId]:
            found = connection.execute(f"SELECT workflow_id FROM summaries {where}", values)
            return [WorkflowId(from_bytes(key)) for (key,) in found.fetchall()]

        return await self._database.read(work)
