"""Task logs, poll data and keyed values in SQL."""

import sqlite3
from collections.abc import Mapping, Sequence

from cluster.ids import NUMBER_MAX, TaskId, WorkflowId, task_id, to_bytes
from cluster.store.ports import TASK_LOG_LINES_MAX, PollData, TaskLog
from cluster.store.sql.batches import ManyRows
from cluster.store.sql.database import Database

_POLLS = ManyRows(
    "INSERT INTO poll_data (task_type, domain, worker_id, last_poll_ms) VALUES",
    "ON CONFLICT (task_type, domain) DO UPDATE SET worker_id = excluded.worker_id,"
    " last_poll_ms = excluded.last_poll_ms WHERE excluded.last_poll_ms >= poll_data.last_poll_ms",
    columns=4,
)


class SqlRecordStore:
    """RecordStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append_task_logs(self, lines: Sequence[TaskLog]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for line in lines:
                _append(connection, to_bytes(line.task_id), line)

        await self._database.write(work)

    async def task_logs(self, task_id: TaskId) -> Sequence[TaskLog]:
        def work(connection: sqlite3.Connection) -> Sequence[TaskLog]:
            found = connection.execute(
                "SELECT created_ms, line FROM task_logs WHERE task_id = ? ORDER BY number",
                (to_bytes(task_id),),
            ).fetchall()
            return [TaskLog(task_id, created_ms, line) for created_ms, line in found]

        return await self._database.read(work)

    async def remove_task_logs(self, workflow_id: WorkflowId) -> None:
        def work(connection: sqlite3.Connection) -> None:
            # A workflow's id and its highest task id enclose all its task ids.
            connection.execute(
                "DELETE FROM task_logs WHERE task_id >= ? AND task_id <= ?",
                (to_bytes(workflow_id), to_bytes(task_id(workflow_id, NUMBER_MAX))),
            )

        await self._database.write(work)

    async def put_poll_data(self, polls: Sequence[PollData]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            values: list[object] = []
            for poll in polls:
                values += (poll.task_type, poll.domain, poll.worker_id, poll.last_poll_ms)
            _POLLS.run(connection, values)

        await self._database.write(work)

    async def poll_data(self, task_type: str | None) -> Sequence[PollData]:
        def work(connection: sqlite3.Connection) -> Sequence[PollData]:
            found = connection.execute(
                "SELECT task_type, domain, worker_id, last_poll_ms FROM poll_data"
                + ("" if task_type is None else " WHERE task_type = ?")
                + " ORDER BY task_type, domain",
                () if task_type is None else (task_type,),
            ).fetchall()
            return [PollData(*values) for values in found]

        return await self._database.read(work)

    async def polls_with_domain(self) -> Sequence[PollData]:
        return [poll for poll in await self.poll_data(None) if poll.domain]

    async def put(self, kind: str, values: Mapping[str, bytes | None]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for key, value in values.items():
                if value is None:
                    connection.execute(
                        "DELETE FROM records WHERE kind = ? AND key = ?", (kind, key)
                    )
                else:
                    connection.execute(
                        "INSERT INTO records (kind, key, value) VALUES (?, ?, ?)"
                        " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
                        (kind, key, value),
                    )

        await self._database.write(work)

    async def get(self, kind: str, key: str) -> bytes | None:
        def work(connection: sqlite3.Connection) -> bytes | None:
            found = connection.execute(
                "SELECT value FROM records WHERE kind = ? AND key = ?", (kind, key)
            ).fetchone()
            return None if found is None else found[0]

        return await self._database.read(work)

    async def page(
        self, kind: str, *, prefix: str, after: str | None, limit: int
    ) -> Sequence[tuple[str, bytes]]:
        def work(connection: sqlite3.Connection) -> Sequence[tuple[str, bytes]]:
            found = connection.execute(
                "SELECT key, value FROM records WHERE kind = ? AND key >= ?"
                + ("" if after is None else " AND key > ?")
                + " ORDER BY key LIMIT ?",
                (kind, prefix, *(() if after is None else (after,)), limit),
            ).fetchall()
            # Keys with the prefix stand together, from the prefix itself on.
            return [(key, value) for key, value in found if key.startswith(prefix)]

        return await self._database.read(work)


def _append(connection: sqlite3.Connection, key: bytes, line: TaskLog) -> None:
    (last,) = connection.execute(
        "SELECT coalesce(max(number), 0) FROM task_logs WHERE task_id = ?", (key,)
    ).fetchone()
    connection.execute(
        "INSERT INTO task_logs (task_id, number, created_ms, line) VALUES (?, ?, ?, ?)",
        (key, last + 1, line.created_ms, line.line),
    )
    connection.execute(
        "DELETE FROM task_logs WHERE task_id = ? AND number <= ?",
        (key, last + 1 - TASK_LOG_LINES_MAX),
    )
