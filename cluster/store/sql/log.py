"""Commit logs in SQL: an append is one statement that looks at the fence."""

import sqlite3
from collections.abc import Sequence

from cluster.errors import Fenced
from cluster.store.ports import Fence, LogId, first_position
from cluster.store.sql.database import Database

_POSITIONS = 1 << 40
_DROPPED_BYTES_MAX = 1 << 20
"""Deleted in one transaction; appends run in between."""

_APPEND = f"""
    INSERT INTO entries (place, entry)
    SELECT number * {_POSITIONS} + ?, ? FROM fences WHERE log = ? AND open = 1
    ON CONFLICT (place) DO NOTHING
"""


class SqlLogStore:
    """LogStore. SQLite runs one writing transaction at a time, so no append overlaps a seal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, log: LogId) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                """
                INSERT INTO fences (log, number, open, first_segment, valid_to)
                SELECT ?, coalesce(max(number), 0) + 1, 1, 0, NULL FROM fences WHERE true
                ON CONFLICT (log) DO NOTHING
                """,
                (log,),
            )

        await self._database.write(work)

    async def append(self, log: LogId, position: int, entry: bytes) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if connection.execute(_APPEND, (position, entry, log)).rowcount != 1:
                _explain(connection, log, position, entry)

        await self._database.write_one(work)

    async def fence(self, log: LogId) -> Fence | None:
        def work(connection: sqlite3.Connection) -> Fence | None:
            found = _fence(connection, log)
            return None if found is None else found[1]

        return await self._database.read(work)

    async def seal(self, log: LogId) -> Fence:
        def close(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE fences SET open = 0 WHERE log = ?", (log,))

        # Two transactions: where appends of others run beside the seal (not in SQLite), the log
        # may be read only after the closed fence is committed.
        await self._database.write(close)
        return await self._database.write(lambda connection: _record_end(connection, log))

    async def read(
        self, log: LogId, *, after: int, upto: int, bytes_max: int
    ) -> Sequence[tuple[int, bytes]]:
        def work(connection: sqlite3.Connection) -> Sequence[tuple[int, bytes]]:
            fence = _fence(connection, log)
            if fence is None:
                return []
            base = fence[0] * _POSITIONS
            found: list[tuple[int, bytes]] = []
            size = 0
            for place, entry in connection.execute(
                "SELECT place, entry FROM entries WHERE place > ? AND place <= ? ORDER BY place",
                (base + after, base + upto),
            ):
                found.append((place - base, entry))
                size += len(entry)
                if size >= bytes_max:
                    break
            return found

        return await self._database.read(work)

    async def advance_first_segment(self, log: LogId, segment: int) -> None:
        def advance(connection: sqlite3.Connection) -> tuple[int, int]:
            fence = _fence(connection, log)
            if fence is None or not fence[1].open:
                raise Fenced(f"log {log} is sealed")
            number, standing = fence
            first = max(segment, standing.first_segment)
            connection.execute(
                "UPDATE fences SET first_segment = ? WHERE log = ? AND open = 1", (first, log)
            )
            return number, first

        number, first = await self._database.write(advance)
        await self._drop(number, before=first_position(first))

    async def delete(self, log: LogId) -> None:
        found = await self._database.write(lambda connection: _fence(connection, log))
        if found is None or found[1].valid_to is None:
            return
        await self._drop(found[0], before=_POSITIONS)

        def forget(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM fences WHERE log = ? AND open = 0", (log,))

        await self._database.write(forget)

    async def logs(self) -> Sequence[LogId]:
        def work(connection: sqlite3.Connection) -> Sequence[LogId]:
            return [LogId(log) for (log,) in connection.execute("SELECT log FROM fences")]

        return await self._database.read(work)

    async def _drop(self, number: int, *, before: int) -> None:
        base = number * _POSITIONS

        def work(connection: sqlite3.Connection) -> bool:
            size, dropped_to = 0, -1
            for place, length in connection.execute(
                "SELECT place, length(entry) FROM entries WHERE place >= ? AND place < ?"
                " ORDER BY place",
                (base, base + before),
            ):
                dropped_to = place
                size += length
                if size >= _DROPPED_BYTES_MAX:
                    break
            connection.execute(
                "DELETE FROM entries WHERE place >= ? AND place <= ?", (base, dropped_to)
            )
            return dropped_to == -1

        is_done = False
        while not is_done:
            is_done = await self._database.write(work)


def _fence(connection: sqlite3.Connection, log: LogId) -> tuple[int, Fence] | None:
    found = connection.execute(
        "SELECT number, open, first_segment, valid_to FROM fences WHERE log = ?", (log,)
    ).fetchone()
    if found is None:
        return None
    number, is_open, first_segment, valid_to = found
    return number, Fence(open=bool(is_open), first_segment=first_segment, valid_to=valid_to)


def _record_end(connection: sqlite3.Connection, log: LogId) -> Fence:
    found = _fence(connection, log)
    if found is None:
        return Fence(open=False, first_segment=0, valid_to=0)
    number, fence = found
    if fence.valid_to is not None:
        return fence
    base = number * _POSITIONS
    end = first_position(fence.first_segment) - 1
    for (place,) in connection.execute(
        "SELECT place FROM entries WHERE place > ? AND place < ? ORDER BY place",
        (base + end, base + _POSITIONS),
    ):
        if place != base + end + 1:
            break
        end += 1
    connection.execute(
        "UPDATE fences SET valid_to = ? WHERE log = ? AND valid_to IS NULL", (end, log)
    )
    return Fence(open=False, first_segment=fence.first_segment, valid_to=end)


def _explain(connection: sqlite3.Connection, log: LogId, position: int, entry: bytes) -> None:
    found = _fence(connection, log)
    if found is None or not found[1].open:
        raise Fenced(f"log {log} is sealed")
    standing = connection.execute(
        "SELECT entry FROM entries WHERE place = ?", (found[0] * _POSITIONS + position,)
    ).fetchone()
    if standing is None or standing[0] != entry:
        raise Fenced(f"position {position} of log {log} holds other bytes")
