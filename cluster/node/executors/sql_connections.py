"""Connections of JDBC tasks: PostgreSQL, MySQL and SQLite behind one small interface.

Values are always bound by the server, never written into a statement. A connection does one
statement at a time; one on which anything went wrong, or which was left in the middle, is closed.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

_CONNECT_S = 10


class SqlFailed(Exception):
    """A statement or a connection failed; the message is the driver's."""


class Result(msgspec.Struct, frozen=True):
    count: int
    """Rows that were changed."""
    rows: list[dict[str, Any]] | None = None
    """None: there is more than was asked for."""


class Connection(Protocol):
    async def run(
        self,
        statement: str,
        parameters: Sequence[Any],
        *,
        rows_max: int | None,
        keep: Callable[[int], bool],
    ) -> Result:
        """Carry out one statement in a transaction of its own; `?` stands for each parameter.

        `rows_max` None: rows are not wanted, the count of changed ones is; it is committed if
        `keep` says so of that count. SqlFailed.
        """

    async def close(self) -> None:
        """Close it whatever it does. May not raise."""


Connect = Callable[[], Awaitable[Connection]]

_BOOLS = {"true": True, "false": False}


def connector(url: str, *, time_limit_ms: int) -> Connect:
    """What opens connections to a database. ValueError: the address is none, or its driver is not
    installed."""
    kind = url.partition(":")[0].lower()
    if kind in ("postgresql", "postgres"):
        return _postgresql(url, time_limit_ms)
    if kind in ("mysql", "mariadb"):
        return _mysql(url)
    if kind == "sqlite":
        return _sqlite(url)
    raise ValueError(f"{kind!r} is none of postgresql, mysql, sqlite")


# -- PostgreSQL


def _postgresql(url: str, time_limit_ms: int) -> Connect:
    try:
        import psycopg
    except ImportError:
        raise ValueError(
            "PostgreSQL needs its driver: pip install 'podium-cluster[postgresql]'"
        ) from None

    async def connect() -> Connection:
        try:
            made = await psycopg.AsyncConnection.connect(
                url, connect_timeout=_CONNECT_S, options=f"-c statement_timeout={time_limit_ms}"
            )
        except psycopg.Error as failure:
            raise SqlFailed(str(failure).strip()) from None
        return PostgresConnection(made)

    return connect


class PostgresConnection:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def run(
        self,
        statement: str,
        parameters: Sequence[Any],
        *,
        rows_max: int | None,
        keep: Callable[[int], bool],
    ) -> Result:
        import psycopg
        from psycopg.rows import dict_row

        try:
            cursor = psycopg.AsyncRawCursor(self._connection, row_factory=dict_row)
            async with cursor:
                if rows_max is None:
                    await cursor.execute(numbered(statement), parameters)
                    count = max(0, cursor.rowcount)
                    await (
                        self._connection.commit() if keep(count) else self._connection.rollback()
                    )
                    return Result(count)
                rows: list[dict[str, Any]] = []
                async for row in cursor.stream(numbered(statement), parameters):
                    if len(rows) == rows_max:
                        await self.close()
                        return Result(0, None)
                    rows.append(row)
            await self._connection.commit()
            return Result(0, rows)
        except psycopg.Error as failure:
            raise SqlFailed(str(failure).strip()) from None

    async def close(self) -> None:
        await self._connection.close()


def numbered(statement: str) -> str:
    """`?` outside of literals, names and comments becomes $1, $2, ...; `??` an operator's `?`."""
    parts: list[str] = []
    count = at = 0
    while at < len(statement):
        end = _end_of_quoted(statement, at)
        if end > at:
            parts.append(statement[at:end])
            at = end
        elif statement.startswith("??", at):
            parts.append("?")
            at += 2
        elif statement[at] == "?":
            count += 1
            parts.append(f"${count}")
            at += 1
        else:
            parts.append(statement[at])
            at += 1
    return "".join(parts)


def _end_of_quoted(text: str, at: int) -> int:
    """Where the literal, quoted name or comment ends that begins here; `at` if none does."""
    first = text[at]
    if first in "'\"":
        # A backslash escapes in E'...' only, as by the standard.
        escapes = first == "'" and at > 0 and text[at - 1] in "eE"
        end = at + 1
        while end < len(text) and text[end] != first:
            end += 2 if escapes and text[end] == "\\" else 1
        return min(end + 1, len(text))
    if text.startswith("--", at):
        end = text.find("\n", at)
        return len(text) if end < 0 else end
    if text.startswith("/*", at):
        return _end_of_comment(text, at)
    if first == "$":
        tag_end = text.find("$", at + 1)
        tag = text[at : tag_end + 1]
        if tag_end > 0 and (len(tag) == 2 or tag[1:-1].isidentifier()):
            end = text.find(tag, tag_end + 1)
            return len(text) if end < 0 else end + len(tag)
    return at


def _end_of_comment(text: str, at: int) -> int:
    """Comments nest in PostgreSQL."""
    depth = 0
    while at < len(text):
        if text.startswith("/*", at):
            depth += 1
            at += 2
        elif text.startswith("*/", at):
            depth -= 1
            at += 2
            if not depth:
                break
        else:
            at += 1
    return at


# -- MySQL, MariaDB


def _mysql(url: str) -> Connect:
    try:
        import mysql.connector.aio as driver
        from mysql.connector import Error
    except ImportError:
        raise ValueError("MySQL needs its driver: pip install 'podium-cluster[mysql]'") from None
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "host": parts.hostname or "127.0.0.1",
        "port": parts.port or 3306,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": unquote(parts.path.lstrip("/")),
        "connection_timeout": _CONNECT_S,
        **{name: _BOOLS.get(text, text) for name, text in parse_qsl(parts.query)},
    }

    async def connect() -> Connection:
        try:
            try:
                made = await driver.connect(**options)
            except TypeError:
                # This driver stumbles where it tries TLS and the server has none.
                if any(name.startswith("ssl") for name in options):
                    raise SqlFailed("The server has no TLS") from None
                made = await driver.connect(**options, ssl_disabled=True)
        except (Error, OSError, TimeoutError) as failure:
            raise SqlFailed(str(failure)) from None
        return MySqlConnection(made)

    return connect


class MySqlConnection:
    """Prepared statements, which the server binds values to; other cursors write them into text."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def run(
        self,
        statement: str,
        parameters: Sequence[Any],
        *,
        rows_max: int | None,
        keep: Callable[[int], bool],
    ) -> Result:
        from mysql.connector import Error

        try:
            cursor = await self._connection.cursor(prepared=True, dictionary=rows_max is not None)
            await cursor.execute(statement, tuple(parameters))
            if rows_max is None:
                count = max(0, cursor.rowcount)
                await (self._connection.commit() if keep(count) else self._connection.rollback())
                await cursor.close()
                return Result(count)
            rows = await cursor.fetchmany(rows_max + 1)
            if len(rows) > rows_max:
                await self.close()
                return Result(0, None)
            await cursor.close()
            await self._connection.commit()
            return Result(0, rows)
        except (Error, OSError) as failure:
            raise SqlFailed(str(failure)) from None

    async def close(self) -> None:
        # Politely it would wait for what the server is doing.
        await self._connection.shutdown()


# -- SQLite


def _sqlite(url: str) -> Connect:
    path = unquote(url.removeprefix("sqlite://"))
    if not path.startswith("/"):
        raise ValueError(f"{url} is not sqlite:///FILE")
    if path.startswith("//"):
        path = path[1:]

    async def connect() -> Connection:
        return await SqliteConnection.open(path)

    return connect


class SqliteConnection:
    """In a thread of its own, because SQLite knows no other way."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sql-task")
        self._connection: sqlite3.Connection

    @classmethod
    async def open(cls, path: str) -> "SqliteConnection":
        made = cls(path)
        try:
            await made._in_thread(made._connect)
        except SqlFailed:
            made._thread.shutdown(wait=False)
            raise
        return made

    async def run(
        self,
        statement: str,
        parameters: Sequence[Any],
        *,
        rows_max: int | None,
        keep: Callable[[int], bool],
    ) -> Result:
        result: Result = await self._in_thread(self._run, statement, parameters, rows_max, keep)
        return result

    async def close(self) -> None:
        self._connection.interrupt()
        self._thread.submit(self._connection.close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as failure:
            raise SqlFailed(str(failure)) from None

    def _connect(self) -> None:
        self._connection = sqlite3.connect(
            self._path, timeout=_CONNECT_S, isolation_level=None, check_same_thread=False
        )

    def _run(
        self,
        statement: str,
        parameters: Sequence[Any],
        rows_max: int | None,
        keep: Callable[[int], bool],
    ) -> Result:
        connection = self._connection
        connection.execute("BEGIN" if rows_max is not None else "BEGIN IMMEDIATE")
        try:
            cursor = connection.execute(statement, parameters)
            result = Result(max(0, cursor.rowcount))
            if rows_max is not None:
                names = [column[0] for column in cursor.description or ()]
                found = cursor.fetchmany(rows_max + 1)
                rows = [dict(zip(names, row, strict=True)) for row in found]
                result = Result(0, None if len(rows) > rows_max else rows)
            cursor.close()
            connection.execute(
                "COMMIT" if rows_max is not None or keep(result.count) else "ROLLBACK"
            )
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result
