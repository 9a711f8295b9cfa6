"""Definitions in dictionaries."""

from collections.abc import Sequence

from cluster.errors import Conflict
from cluster.store.ports import Definition, DefinitionKey


class MemoryMetadataStore:
    """MetadataStore."""

    def __init__(self) -> None:
        self._definitions: dict[tuple[str, str, int], Definition] = {}
        self._snapshots: dict[bytes, bytes] = {}

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
        standing = self._definitions.get((kind, name, version))
        revision = 0 if standing is None else standing.revision
        if expected_revision not in (None, revision):
            raise Conflict(f"{kind} definition {name} {version} stands at revision {revision}")
        written = Definition(
            kind=kind,
            name=name,
            version=version,
            body=body,
            revision=revision + 1,
            create_ms=at_ms if standing is None else standing.create_ms,
            update_ms=at_ms,
        )
        self._definitions[kind, name, version] = written
        return written

    async def get(self, kind: str, name: str, version: int | None) -> Definition | None:
        if version is not None:
            return self._definitions.get((kind, name, version))
        found = await self.definitions(kind, name)
        return found[-1] if found else None

    async def definitions(self, kind: str, name: str | None) -> Sequence[Definition]:
        found = [
            definition
            for definition in self._definitions.values()
            if definition.kind == kind and name in (None, definition.name)
        ]
        return sorted(found, key=lambda definition: (definition.name, definition.version))

    async def keys(self, kind: str, name: str | None) -> Sequence[DefinitionKey]:
        return [
            DefinitionKey(
                kind=found.kind,
                name=found.name,
                version=found.version,
                revision=found.revision,
                create_ms=found.create_ms,
                update_ms=found.update_ms,
            )
            for found in await self.definitions(kind, name)
        ]

    async def remove(self, kind: str, name: str, version: int) -> bool:
        return self._definitions.pop((kind, name, version), None) is not None

    async def put_snapshot(self, content_hash: bytes, body: bytes) -> None:
        self._snapshots[content_hash] = body

    async def snapshot(self, content_hash: bytes) -> bytes | None:
        return self._snapshots.get(content_hash)
