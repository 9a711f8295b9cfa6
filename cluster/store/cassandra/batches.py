"""Many rows in few requests: what goes to one partition goes together."""

import struct
import zlib
from collections.abc import Hashable, Sequence
from typing import Any

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


class Writes:
    """Gathers encoded rows by partition; `send` writes them in unlogged batches.

    A batch of one partition is one write to Cassandra, whatever its size. Small ones of several
    partitions share a request too: nothing here relies on a batch being applied as a whole.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._partitions: dict[Hashable, list[tuple[Prepared, Sequence[bytes | None], int]]] = {}

    def add(
        self, partition: Hashable, prepared: Prepared, values: Sequence[bytes | None], size: int = 0
    ) -> None:
        """One row: the values are encoded already; `size` is what the large ones take."""
        self._partitions.setdefault(partition, []).append((prepared, values, size + _ROW_BYTES))

    async def send(self) -> None:
        """Durable when it returns."""
        statements = self._statements()
        if statements:
            await self._session.write_all(statements)

    def _statements(self) -> list[Statement]:
        whole: list[Statement] = []
        together, partitions, size = self._session.batch(), 0, 0
        for rows in self._partitions.values():
            bytes_all = sum(row[2] for row in rows)
            if bytes_all > _TOGETHER_BYTES // 2 or len(self._partitions) == 1:
                whole += self._of_one_partition(rows)
                continue
            if partitions == _TOGETHER_PARTITIONS or size + bytes_all > _TOGETHER_BYTES:
                whole.append(together)
                together, partitions, size = self._session.batch(), 0, 0
            for prepared, values, _ in rows:
                together.add(bound(prepared, values))
            partitions += 1
            size += bytes_all
        if partitions:
            whole.append(together)
        return whole

    def _of_one_partition(
        self, rows: list[tuple[Prepared, Sequence[bytes | None], int]]
    ) -> list[Statement]:
        if len(rows) == 1:
            return [bound(rows[0][0], rows[0][1])]
        batches: list[Statement] = []
        batch, count, size = self._session.batch(), 0, 0
        for prepared, values, row_bytes in rows:
            if count == _BATCH_ROWS or (count and size + row_bytes > _BATCH_BYTES):
                batches.append(batch)
                batch, count, size = self._session.batch(), 0, 0
            batch.add(bound(prepared, values))
            count += 1
            size += row_bytes
        batches.append(batch)
        return batches


def bound(prepared: Prepared, values: Sequence[bytes | None]) -> Any:
    """The statement with values that are encoded already: `bind` looks up a type for each."""
    statement = BoundStatement(prepared)
    statement.values = list(values)
    return statement


def bucket_of(name: str, count: int) -> int:
    """A partition for a name, the same in every process."""
    return zlib.crc32(name.encode()) % count
