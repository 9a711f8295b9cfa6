"""Many rows in few requests: what goes to one partition goes together."""

import struct
import zlib
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

from cassandra.query import BoundStatement

from cluster.store.cassandra.session import Prepared, Session, Statement

int32 = struct.Struct(">i").pack
int64 = struct.Struct(">q").pack

_BATCH_BYTES = 512 * 1024
_BATCH_ROWS = 1_000
# Cassandra logs a warning for a batch over more than 10 partitions or, over several, 5 KiB.
_TOGETHER_PARTITIONS = 10
_TOGETHER_BYTES = 4 * 1024
_ROW_BYTES = 48

_Write: TypeAlias = tuple[Prepared, Sequence[bytes | None], int]
"""A statement, its values, and about how many bytes they are."""


class Writes:
    """Gathers encoded rows by partition; `send` writes them in unlogged batches.

    A batch of one partition is one write to Cassandra, whatever its size. Small ones of several
    partitions share a request too: nothing here relies on a batch being applied as a whole.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._partitions: dict[Hashable, list[_Write]] = {}

    def add(
        self, partition: Hashable, prepared: Prepared, values: Sequence[bytes | None], size: int = 0
    ) -> None:
        """One row: the values are encoded already; `size` is what the large ones take."""
        size += _ROW_BYTES
        flow = prepared.flow
        flow.items += 1
        flow.sent_bytes += size
        self._partitions.setdefault(partition, []).append((prepared, values, size))

    async def send(self) -> None:
        """Durable when it returns."""
        statements = self._statements()
        if statements:
            await self._session.write_all(statements)

    def _statements(self) -> list[Statement]:
        whole: list[Statement] = []
        together: list[_Write] = []
        partitions = size = 0
        for rows in self._partitions.values():
            bytes_all = sum(row[2] for row in rows)
            if bytes_all > _TOGETHER_BYTES // 2 or len(self._partitions) == 1:
                whole += self._of_one_partition(rows)
                continue
            if partitions == _TOGETHER_PARTITIONS or size + bytes_all > _TOGETHER_BYTES:
                whole.append(self._batch(together))
                together, partitions, size = [], 0, 0
            together += rows
            partitions += 1
            size += bytes_all
        if together:
            whole.append(self._batch(together))
        return whole

    def _of_one_partition(self, rows: list[_Write]) -> list[Statement]:
        batches: list[Statement] = []
        begin = size = 0
        for at, (_, _, row_bytes) in enumerate(rows):
            if at - begin == _BATCH_ROWS or (at > begin and size + row_bytes > _BATCH_BYTES):
                batches.append(self._batch(rows[begin:at]))
                begin, size = at, 0
            size += row_bytes
        batches.append(self._batch(rows[begin:]))
        return batches

    def _batch(self, rows: list[_Write]) -> Statement:
        prepared, values, _ = rows[0]
        if len(rows) == 1:
            return bound(prepared, values)
        batch = self._session.batch(prepared.flow)
        # Through the first row it learns where to go.
        batch.add(bound(prepared, values))
        for prepared, values, _ in rows[1:]:
            batch._add_statement_and_params(True, prepared.query_id, values)
        return batch


def bound(prepared: Prepared, values: Sequence[bytes | None]) -> Any:
    """The statement with values that are encoded already: `bind` looks up a type for each."""
    statement = BoundStatement(prepared)
    statement.values = list(values)
    return statement


def bucket_of(name: str, count: int) -> int:
    """A partition for a name, the same in every process."""
    return zlib.crc32(name.encode()) % count
