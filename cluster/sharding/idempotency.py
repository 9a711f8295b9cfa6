"""Idempotency keys: one row per (workflow name, key), on the shard of the workflow it started."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from cluster.ids import WorkflowId
from cluster.store.ports import ExecutionStore, Row

KEY_ROW = 5
"""Row number of a key's record; it stands under an id made of the key."""


class KeyRecord(msgspec.Struct, frozen=True, array_like=True):
    """Which workflow a key has started, and when."""

    workflow_id: str
    name: str
    key: str
    at_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(KeyRecord).decode


class Keys:
    """The keys of this node's shards. Recent ones are in memory until the store has them."""

    def __init__(self, store: ExecutionStore, *, ttl_ms: int) -> None:
        self._store = store
        self._ttl_ms = ttl_ms
        self._recent: dict[WorkflowId, KeyRecord] = {}
        self._entries: dict[WorkflowId, int] = {}
        """Key → log entry of its recent row, once that is known."""
        self._written: dict[WorkflowId, int] = {}
        """Key whose entry is not known yet → log entry up to which the store has its rows."""
        self._locks: dict[WorkflowId, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def locked(self, key_id: WorkflowId) -> AsyncIterator[None]:
        """One start at a time per key."""
        lock, users = self._locks.get(key_id, (asyncio.Lock(), 0))
        self._locks[key_id] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key_id]
            if users == 1:
                del self._locks[key_id]
            else:
                self._locks[key_id] = lock, users - 1

    async def read(self, key_id: WorkflowId, now_ms: int) -> KeyRecord | None:
        """What a key has started, unless that is too long ago."""
        record = self._recent.get(key_id)
        if record is None:
            for row in await self._store.read(key_id):
                if row.number == KEY_ROW:
                    record = _decode(row.data)
        if record is None or record.at_ms + self._ttl_ms <= now_ms:
            return None
        return record

    def note(self, key_id: WorkflowId, record: KeyRecord) -> Row:
        """Remember a key; the row goes into the commit of the start."""
        self._recent[key_id] = record
        self._entries.pop(key_id, None)
        self._written.pop(key_id, None)
        return Row(key_id, KEY_ROW, _encode(record))

    def committed(self, key_id: WorkflowId, entry: int) -> None:
        """The row is in log entry `entry`."""
        self._entries[key_id] = entry
        self.written((key_id,), self._written.get(key_id, 0))

    def forget(self, key_id: WorkflowId) -> None:
        """The start did not happen."""
        self._recent.pop(key_id, None)
        self._written.pop(key_id, None)

    def forget_unless(self, is_served: Callable[[WorkflowId], bool]) -> None:
        """Drop what is in memory of keys whose shards are not served any more."""
        for known in (self._recent, self._entries, self._written):
            for key_id in [key_id for key_id in known if not is_served(key_id)]:
                del known[key_id]

    def written(self, key_ids: Sequence[WorkflowId], position: int) -> None:
        """The store has these as of log entry `position` (others may be among them)."""
        for key_id in key_ids:
            if key_id not in self._recent:
                continue
            # A start that came since may have put another row for the same key.
            entry = self._entries.get(key_id)
            if entry is None:
                self._written[key_id] = position
            elif entry <= position:
                del self._recent[key_id], self._entries[key_id]
                self._written.pop(key_id, None)
