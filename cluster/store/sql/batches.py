"""Many rows in few statements.

Every step of a statement gives up the interpreter lock, and a busy event loop gives it back only
after its switch interval (5 ms): a row per step would let a checkpoint take minutes under load.
"""

import sqlite3
from collections.abc import Sequence

_SIZES = (256, 32, 8, 2, 1)


class ManyRows:
    """A statement with a list of `(?, ?, …)` in it, run for any number of rows."""

    def __init__(self, before: str, after: str, *, columns: int) -> None:
        self._columns = columns
        row = f"({', '.join('?' * columns)})"
        self._statements = [
            (size, f"{before} {', '.join([row] * size)} {after}") for size in _SIZES
        ]

    def run(self, connection: sqlite3.Connection, values: Sequence[object]) -> None:
        """`values`: those of all rows, one after the other."""
        start = 0
        for size, statement in self._statements:
            width = size * self._columns
            while len(values) - start >= width:
                connection.execute(statement, values[start : start + width])
                start += width


class Upsert(ManyRows):
    """Insert rows, or replace each standing one whose revision (the last column) is lower. NULL
    leaves columns that are `kept` as they stand."""

    def __init__(
        self,
        table: str,
        *,
        key: Sequence[str],
        columns: Sequence[str],
        kept: Sequence[str] = (),
    ) -> None:
        names = [*key, *columns, "revision"]
        changes = ", ".join(
            f"{name} = coalesce(excluded.{name}, {table}.{name})"
            if name in kept
            else f"{name} = excluded.{name}"
            for name in [*columns, "revision"]
        )
        super().__init__(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES",
            f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
            f" WHERE excluded.revision > {table}.revision",
            columns=len(names),
        )


class Removal(ManyRows):
    """Delete the rows with the given keys whose revision is at most the one given with each."""

    def __init__(self, table: str, *, key: str) -> None:
        # A key of two columns would be looked up by the first one alone.
        super().__init__(
            "WITH gone (gone_key, upto) AS (VALUES",
            f") DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM gone JOIN {table}"
            f" ON {key} = gone_key WHERE revision <= upto)",
            columns=2,
        )


class Lookup(ManyRows):
    """Read the rows of some keys."""

    def fetch(
        self, connection: sqlite3.Connection, values: Sequence[object]
    ) -> list[tuple[object, ...]]:
        """All rows found, in no order."""
        found: list[tuple[object, ...]] = []
        start = 0
        for size, statement in self._statements:
            while len(values) - start >= size * self._columns:
                part = values[start : start + size * self._columns]
                found += connection.execute(statement, part).fetchall()
                start += len(part)
        return found
