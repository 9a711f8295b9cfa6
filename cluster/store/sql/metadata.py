"""Definitions and snapshots in SQL."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from cluster.errors import Conflict
from cluster.store.ports import Definition, DefinitionKey
from cluster.store.sql.database import Database

T = TypeVar("T")

_KEY = "kind, name, version"
_REST = "revision, create_ms, update_ms"


class SqlMetadataStore:
    """MetadataStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self,
        kind: str,
        name: str,
        version: int,
        body: bytes,
        *,
        at_ms: int,
        expected_revision: int | None,
    ) -> Definition:
        def work(connection: sqlite3.Connection) -> Definition:
            standing = connection.execute(
                "SELECT revision, create_ms FROM definitions"
                " WHERE kind = ? AND name = ? AND version = ?",
                (kind, name, version),
            ).fetchone()
            revision, create_ms = standing or (0, at_ms)
            if expected_revision not in (None, revision):
                raise Conflict(f"{kind} definition {name} {version} stands at revision {revision}")
            connection.execute(
                f"INSERT INTO definitions ({_KEY}, body, {_REST}) VALUES (?, ?, ?, ?, ?, ?, ?)"
                f" ON CONFLICT ({_KEY}) DO UPDATE SET body = excluded.body,"
                " revision = excluded.revision, update_ms = excluded.update_ms",
                (kind, name, version, body, revision + 1, create_ms, at_ms),
            )
            return Definition(
                kind=kind,
                name=name,
                version=version,
                body=body,
                revision=revision + 1,
                create_ms=create_ms,
                update_ms=at_ms,
            )

        return await self._database.write(work)

    async def get(self, kind: str, name: str, version: int | None) -> Definition | None:
        def work(connection: sqlite3.Connection) -> Definition | None:
            found = connection.execute(
                f"SELECT {_KEY}, body, {_REST} FROM definitions WHERE kind = ? AND name = ?"
                + ("" if version is None else " AND version = ?")
                + " ORDER BY version DESC LIMIT 1",
                (kind, name, *(() if version is None else (version,))),
            ).fetchone()
            return None if found is None else Definition(*found)

        return await self._database.read(work)

    async def definitions(self, kind: str, name: str | None) -> Sequence[Definition]:
        return await self._select(Definition, f"{_KEY}, body, {_REST}", kind, name)

    async def keys(self, kind: str, name: str | None) -> Sequence[DefinitionKey]:
        return await self._select(DefinitionKey, f"{_KEY}, {_REST}", kind, name)

    async def remove(self, kind: str, name: str, version: int) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            removed = connection.execute(
                "DELETE FROM definitions WHERE kind = ? AND name = ? AND version = ?",
                (kind, name, version),
            )
            return removed.rowcount == 1

        return await self._database.write(work)

    async def put_snapshot(self, content_hash: bytes, body: bytes) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO snapshots (content_hash, body) VALUES (?, ?)"
                " ON CONFLICT (content_hash) DO NOTHING",
                (content_hash, body),
            )

        await self._database.write(work)

    async def snapshot(self, content_hash: bytes) -> bytes | None:
        def work(connection: sqlite3.Connection) -> bytes | None:
            found = connection.execute(
                "SELECT body FROM snapshots WHERE content_hash = ?", (content_hash,)
            ).fetchone()
            return None if found is None else found[0]

        return await self._database.read(work)

    async def _select(
        self, shape: Callable[..., T], columns: str, kind: str, name: str | None
    ) -> Sequence[T]:
        def work(connection: sqlite3.Connection) -> Sequence[T]:
            found = connection.execute(
                f"SELECT {columns} FROM definitions WHERE kind = ?"
                + ("" if name is None else " AND name = ?")
                + " ORDER BY name, version",
                (kind, *(() if name is None else (name,))),
            ).fetchall()
            return [shape(*values) for values in found]

        return await self._database.read(work)
