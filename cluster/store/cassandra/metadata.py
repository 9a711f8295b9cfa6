"""Definitions and snapshots in Cassandra: a write is a compare-and-set on the revision."""

import asyncio
from collections.abc import Sequence
from typing import Any

from cluster.errors import Conflict, StoreFault
from cluster.store.cassandra.batches import bucket_of
from cluster.store.cassandra.session import Session
from cluster.store.ports import Definition, DefinitionKey

_PARTS = 16
_ATTEMPTS = 20
_PAGE_ROWS = 100
_REST = "revision, create_ms, update_ms"


class CassandraMetadataStore:
    """MetadataStore."""

    def __init__(self, session: Session) -> None:
        self._session = session
        prepare = session.prepare
        one = (
            f"SELECT name, version, body, {_REST} FROM definitions"
            " WHERE kind = ? AND part = ? AND name = ? AND version = ?"
        )
        self._get = prepare(one)
        self._get_serial = session.prepare_serial(one)
        self._highest = prepare(
            f"SELECT name, version, body, {_REST} FROM definitions"
            " WHERE kind = ? AND part = ? AND name = ? ORDER BY name DESC, version DESC LIMIT 1"
        )
        of_name = "FROM definitions WHERE kind = ? AND part = ? AND name = ?"
        of_kind = "FROM definitions WHERE kind = ? AND part = ?"
        self._bodies = {
            True: prepare(f"SELECT name, version, body, {_REST} {of_name}"),
            False: prepare(f"SELECT name, version, body, {_REST} {of_kind}"),
        }
        self._keys = {
            True: prepare(f"SELECT name, version, {_REST} {of_name}"),
            False: prepare(f"SELECT name, version, {_REST} {of_kind}"),
        }
        self._insert = prepare(
            f"INSERT INTO definitions (kind, part, name, version, body, {_REST})"
            " VALUES (?, ?, ?, ?, ?, 1, ?, ?) IF NOT EXISTS"
        )
        self._update = prepare(
            "UPDATE definitions SET body = ?, revision = ?, update_ms = ?"
            " WHERE kind = ? AND part = ? AND name = ? AND version = ? IF revision = ?"
        )
        self._remove = prepare(
            "DELETE FROM definitions"
            " WHERE kind = ? AND part = ? AND name = ? AND version = ? IF EXISTS"
        )
        self._put_snapshot = prepare("INSERT INTO snapshots (content_hash, body) VALUES (?, ?)")
        self._snapshot = prepare("SELECT body FROM snapshots WHERE content_hash = ?")

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
        key = _key(kind, name, version)
        for _ in range(_ATTEMPTS):
            stands = await self._session.one(self._get_serial, key)
            revision, create_ms = (0, at_ms) if stands is None else (stands[3], stands[4])
            if expected_revision not in (None, revision):
                raise Conflict(f"{kind} definition {name} {version} stands at revision {revision}")
            wanted = Definition(
                kind=kind,
                name=name,
                version=version,
                body=body,
                revision=revision + 1,
                create_ms=create_ms,
                update_ms=at_ms,
            )
            if await self._compare_and_set(wanted, key):
                return wanted
        raise StoreFault(f"{kind} definition {name} {version} is written by too many at once")

    async def get(self, kind: str, name: str, version: int | None) -> Definition | None:
        if version is not None:
            return _definition(kind, await self._session.one(self._get, _key(kind, name, version)))
        part = bucket_of(name, _PARTS)
        return _definition(kind, await self._session.one(self._highest, (kind, part, name)))

    async def definitions(self, kind: str, name: str | None) -> Sequence[Definition]:
        rows = await self._select(self._bodies, kind, name)
        return [Definition(kind, *row) for row in rows]

    async def keys(self, kind: str, name: str | None) -> Sequence[DefinitionKey]:
        rows = await self._select(self._keys, kind, name)
        return [DefinitionKey(kind, *row) for row in rows]

    async def remove(self, kind: str, name: str, version: int) -> bool:
        stands = await self._session.compare_and_set(self._remove, _key(kind, name, version))
        return stands is None

    async def put_snapshot(self, content_hash: bytes, body: bytes) -> None:
        await self._session.execute(self._put_snapshot.bind((content_hash, body)))

    async def snapshot(self, content_hash: bytes) -> bytes | None:
        row = await self._session.one(self._snapshot, (content_hash,))
        return None if row is None else row[0]

    async def _compare_and_set(self, wanted: Definition, key: tuple[str, int, str, int]) -> bool:
        """Whether `wanted` took the place of its predecessor."""
        try:
            if wanted.revision == 1:
                values = (*key, wanted.body, wanted.create_ms, wanted.update_ms)
                stands = await self._session.compare_and_set(self._insert, values)
            else:
                change = (wanted.body, wanted.revision, wanted.update_ms)
                stands = await self._session.compare_and_set(
                    self._update, (*change, *key, wanted.revision - 1)
                )
        except StoreFault:
            # The outcome is unknown: who reads at SERIAL knows it.
            row = await self._session.one(self._get_serial, key)
            if _definition(wanted.kind, row) != wanted:
                raise
            stands = None
        return stands is None

    async def _select(self, statements: dict[bool, Any], kind: str, name: str | None) -> list[Any]:
        if name is not None:
            values = (kind, bucket_of(name, _PARTS), name)
            return await self._session.all(statements[True], values, page_rows=_PAGE_ROWS)
        parts = await asyncio.gather(
            *(
                self._session.all(statements[False], (kind, part), page_rows=_PAGE_ROWS)
                for part in range(_PARTS)
            )
        )
        return sorted((row for rows in parts for row in rows), key=lambda row: (row[0], row[1]))


def _key(kind: str, name: str, version: int) -> tuple[str, int, str, int]:
    return kind, bucket_of(name, _PARTS), name, version


def _definition(kind: str, row: Any | None) -> Definition | None:
    return None if row is None else Definition(kind, *row)
