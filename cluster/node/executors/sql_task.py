"""JDBC: statements for databases that the operator has configured."""

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from cluster.clock import Clock
from cluster.engine import payloads
from cluster.engine.text import to_text
from cluster.node.executors.sql_connections import Connect, Connection, Result, SqlFailed, connector
from cluster.system_tasks import Done, SystemTask, Work, WorkFailed

_IDLE_MS_MAX = 30_000
_IDLE_MAX = 10


class SqlTask(SystemTask):
    """Conductor's JDBC task: `type` SELECT gives `result`, UPDATE gives `update_count`."""

    def __init__(
        self,
        databases: Mapping[str, Connect],
        *,
        rows_max: int,
        bytes_max: int,
        time_limit_ms: int,
        clock: Clock,
    ) -> None:
        self._databases = {name: _Idle(connect, clock) for name, connect in databases.items()}
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._time_limit_ms = time_limit_ms

    async def close(self) -> None:
        for idle in self._databases.values():
            await idle.close()

    async def execute(self, work: Work) -> Done:
        value = work.input_data
        database = self._database(value)
        statement = value.get("statement")
        if not statement or not isinstance(statement, str):
            raise WorkFailed("Missing statement")
        kind = to_text(value.get("type") or "").upper()
        if kind not in ("SELECT", "UPDATE"):
            raise WorkFailed(f"type must be SELECT or UPDATE, not {kind or 'missing'}")
        given = value.get("parameters")
        if given is not None and not isinstance(given, list):
            raise WorkFailed("parameters must be a list")
        parameters = [_bound(one) for one in given or ()]
        if kind == "SELECT":
            result = await self._run(database, statement, parameters, rows_max=self._rows_max)
            return Done({"result": self._rows(result)})
        expected = _expected(value)
        result = await self._run(database, statement, parameters, expected=expected)
        output = {"update_count": result.count}
        if expected is not None and result.count != expected:
            raise WorkFailed(
                f"Update count {result.count} does not match with expected update count {expected}",
                output=output,
            )
        return Done(output)

    def _database(self, value: Mapping[str, Any]) -> "_Idle":
        for field in ("connectionId", "integrationName"):
            name = value.get(field)
            if name is not None:
                idle = self._databases.get(to_text(name))
                if idle is None:
                    reason = f"No such datasource configured by {field} {to_text(name)}"
                    raise WorkFailed(reason)
                return idle
        raise WorkFailed("Missing connectionId")

    async def _run(
        self,
        database: "_Idle",
        statement: str,
        parameters: list[Any],
        *,
        rows_max: int | None = None,
        expected: int | None = None,
    ) -> Result:
        def keep(count: int) -> bool:
            return expected is None or count == expected

        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._time_limit_ms / 1000):
                connection = await database.take()
                result = await connection.run(statement, parameters, rows_max=rows_max, keep=keep)
        except TimeoutError:
            reason = f"The statement took more than {self._time_limit_ms} ms"
            raise WorkFailed(reason) from None
        except SqlFailed as failure:
            raise WorkFailed(str(failure)) from None
        else:
            if result.rows is not None or rows_max is None:
                await database.give_back(connection)
                connection = None
            return result
        finally:
            if connection is not None:
                await connection.close()

    def _rows(self, result: Result) -> list[dict[str, Any]]:
        if result.rows is None:
            raise WorkFailed(f"The statement gives more than {self._rows_max} rows")
        rows = [{name: _shown(value) for name, value in row.items()} for row in result.rows]
        size = len(payloads.dump(rows))
        if size > self._bytes_max:
            raise WorkFailed(f"The rows are {size} bytes; {self._bytes_max} are allowed")
        return rows


class _Idle:
    """Connections to one database that wait for their next statement."""

    def __init__(self, connect: Connect, clock: Clock) -> None:
        self._connect = connect
        self._clock = clock
        self._idle: list[tuple[int, Connection]] = []

    async def take(self) -> Connection:
        while self._idle:
            since_ms, connection = self._idle.pop()
            # The server, or something on the way, may have closed one that waited for long.
            if self._clock.monotonic_ms() - since_ms < _IDLE_MS_MAX:
                return connection
            await connection.close()
        return await self._connect()

    async def give_back(self, connection: Connection) -> None:
        self._idle.append((self._clock.monotonic_ms(), connection))
        while len(self._idle) > _IDLE_MAX:
            await self._idle.pop(0)[1].close()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop()[1].close()


def _expected(value: Mapping[str, Any]) -> int | None:
    given = value.get("expectedUpdateCount")
    if given is None or given == "":
        return None
    try:
        return int(given)
    except (TypeError, ValueError):
        raise WorkFailed("expectedUpdateCount must be a number") from None


def _bound(value: Any) -> Any:
    """A parameter as drivers take it: what has no type in SQL goes as JSON."""
    return payloads.dump(value).decode() if isinstance(value, dict | list) else value


def _shown(value: Any) -> Any:
    """A value of a row as JSON."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray() | memoryview():
            return b64encode(bytes(value)).decode()
        case dict():
            return {to_text(key): _shown(item) for key, item in value.items()}
        case list() | tuple() | set():
            return [_shown(item) for item in value]
    return str(value)


def open_databases(text: str, *, time_limit_ms: int) -> dict[str, Connect]:
    """`name=URL name2=URL`, as in the setting. ValueError: one cannot be used; no password is in
    its message."""
    found: dict[str, Connect] = {}
    for entry in text.split():
        name, _, url = entry.partition("=")
        if not name or not url:
            raise ValueError("it is not name=URL, with blanks between several")
        try:
            found[name] = connector(url, time_limit_ms=time_limit_ms)
        except ValueError as fault:
            raise ValueError(f"{name}: {fault}") from None
    return found
