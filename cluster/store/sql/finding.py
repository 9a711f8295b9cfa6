"""One search as statements.

A query becomes alternatives (an OR of ANDs), and an alternative becomes arms: selects that each
walk along one index in the order that is wanted, so that a page costs what it shows and not what
there is. The page is the first of all arms together, the total a count of each up to its bound.
What SQL cannot judge is judged row by row, within a bound.
"""

import sqlite3
from collections.abc import Sequence
from itertools import product

import msgspec
from msgspec.structs import replace

from cluster.engine.transitions import WorkflowStatus
from cluster.errors import InvalidRequest
from cluster.store.documents import is_found
from cluster.store.ports import Found, Summary
from cluster.store.queries import (
    INPUT_PREFIX,
    Comparison,
    Leaf,
    Query,
    alternatives,
    is_equality,
    matches,
    sorts_of,
    wanted,
)
from cluster.store.sql import conditions
from cluster.store.sql.conditions import SORTS, Piece, marks

_ARMS_MAX = 120
_FEW = 2_000
"""Workflows with an input value that are better looked at all than found along another index."""
_STEPS = 1_000_000
_STEPS_MAX = 500
"""Millions of steps of SQLite that one search may take: some seconds."""
_CHUNK = 200
_STATUSES = tuple(status.value for status in WorkflowStatus)
_DECODER = msgspec.msgpack.Decoder(Summary)
_INPUTS = msgspec.msgpack.Decoder(dict[str, str])


def find(
    connection: sqlite3.Connection,
    query: Query,
    *,
    start: int,
    size: int,
    hits_max: int,
    rows_max: int,
) -> Found:
    """That of SearchIndex. InvalidRequest: it would take too long."""
    steps = 0

    def is_too_much() -> bool:
        nonlocal steps
        steps += 1
        return steps > _STEPS_MAX

    connection.set_progress_handler(is_too_much, _STEPS)
    try:
        return _Search(connection, query).found(start, size, hits_max, rows_max)
    except sqlite3.OperationalError as error:
        if steps <= _STEPS_MAX:
            raise
        raise InvalidRequest(
            "The search would look at too much; narrow it by workflowType, status or startTime"
        ) from error
    finally:
        connection.set_progress_handler(None, 0)


class _Search:
    def __init__(self, connection: sqlite3.Connection, query: Query) -> None:
        self._connection = connection
        self._query = query
        sorts = sorts_of(query)
        self._keys = [SORTS[sort.field] for sort in sorts]
        self._order = [" DESC" if sort.is_descending else "" for sort in sorts]

    def found(self, start: int, size: int, hits_max: int, rows_max: int) -> Found:
        choices = alternatives(self._query.condition)
        if choices is None:
            # Too many to go through one by one: all workflows are judged, newest first.
            return self._judged([()], start, size, hits_max, rows_max)
        if any(conditions.where(leaves) is None for leaves in choices):
            return self._judged(choices, start, size, hits_max, rows_max)
        arms = [arm for leaves in choices for arm in self._arms(leaves)]
        if not arms:
            return Found([], 0)
        total = self._count(arms, hits_max, may_overlap=len(choices) > 1)
        summaries = self._page(arms, start, size) if start < total else []
        return Found(summaries, total)

    def _judged(
        self,
        choices: Sequence[Sequence[Leaf]],
        start: int,
        size: int,
        hits_max: int,
        rows_max: int,
    ) -> Found:
        arms = [arm for leaves in choices for arm in self._arms(leaves)]
        rows = self._page(arms, 0, rows_max) if arms else []
        hits = [summary for summary in rows if is_found(self._query, summary)]
        total = min(len(hits), hits_max)
        is_partial = len(rows) == rows_max and total < hits_max
        return Found(hits[start : start + size], total, is_partial)

    # -- arms

    def _arms(self, leaves: Sequence[Leaf]) -> list[Piece]:
        """Selects without order whose rows together are those that fulfil an alternative, or,
        where SQL cannot judge all of it, some more. No row is in two of them."""
        told = conditions.told(leaves)
        keys = conditions.ids(leaves)
        if keys is not None:
            return [_select(told)] if keys else []
        correlation_ids = wanted(leaves, "correlationId")
        if correlation_ids is not None and "" not in correlation_ids:
            marked = marks(len(correlation_ids))
            by_id = Piece(f"correlation_id IN ({marked})", tuple(correlation_ids))
            return [_select([by_id, *told], index="summaries_correlation")]
        for leaf in leaves:
            if isinstance(leaf, Comparison) and leaf.field.startswith(INPUT_PREFIX):
                if is_equality(leaf) and "" not in leaf.values:
                    few = self._few(leaf)
                    if few is not None:
                        by_id = Piece(f"workflow_id IN ({marks(len(few))})", tuple(few))
                        return [_select([by_id, *told])] if few else []
        return self._walks(leaves, told)

    def _few(self, leaf: Comparison) -> list[object] | None:
        """The workflows that have an input value; None: those are many."""
        found = conditions.terms(leaf.field[len(INPUT_PREFIX) :], leaf)
        rows = self._connection.execute(
            f"SELECT DISTINCT workflow_id FROM input_values WHERE term IN ({marks(len(found))})"
            " LIMIT ?",
            (*found, _FEW + 1),
        ).fetchall()
        return None if len(rows) > _FEW else [row[0] for row in rows]

    def _walks(self, leaves: Sequence[Leaf], told: list[Piece]) -> list[Piece]:
        """An arm per status, and per definition if some are named: indexes begin with these."""
        statuses = [status for status in _STATUSES if _may_be(leaves, "status", status)]
        names = wanted(leaves, "workflowType")
        if names is not None and len(names) * len(statuses) <= _ARMS_MAX:
            return [
                _select(
                    [Piece("name = ? AND status = ?", (name, status)), *told],
                    index="summaries_status",
                )
                for name, status in product(sorted(map(str, names)), statuses)
            ]
        return [
            _select([Piece("status = ?", (status,)), *told], index="summaries_started")
            for status in statuses
        ]

    # -- statements

    def _count(self, arms: Sequence[Piece], hits_max: int, *, may_overlap: bool) -> int:
        if may_overlap:
            parts = [
                f"SELECT * FROM (SELECT summaries.rowid FROM {arm.sql} LIMIT {hits_max})"
                for arm in arms
            ]
            values = [value for arm in arms for value in arm.values]
            together = f"SELECT count(*) FROM ({' UNION '.join(parts)})"
            return min(self._number(together, values), hits_max)
        total = 0
        for arm in arms:
            total += self._number(
                f"SELECT count(*) FROM (SELECT 1 FROM {arm.sql} LIMIT ?)",
                (*arm.values, hits_max - total),
            )
            if total >= hits_max:
                break
        return total

    def _number(self, statement: str, values: Sequence[object]) -> int:
        number: int = self._connection.execute(statement, values).fetchone()[0]
        return number

    def _page(self, arms: Sequence[Piece], start: int, size: int) -> list[Summary]:
        keys = ", ".join(f"{key} AS k{at}" for at, key in enumerate(self._keys))
        order = ", ".join(f"k{at}{direction}" for at, direction in enumerate(self._order))
        inner = ", ".join(f"{key}{way}" for key, way in zip(self._keys, self._order, strict=True))
        parts = [
            f"SELECT * FROM (SELECT {keys}, summaries.rowid AS place FROM {arm.sql}"
            f" ORDER BY {inner} LIMIT {start + size})"
            for arm in arms
        ]
        rows = self._connection.execute(
            f"SELECT summary, inputs FROM (SELECT * FROM ({' UNION '.join(parts)})"
            f" ORDER BY {order} LIMIT {size} OFFSET {start}) AS page"
            f" CROSS JOIN summaries ON summaries.rowid = page.place ORDER BY {order}",
            [value for arm in arms for value in arm.values],
        )
        found: list[Summary] = []
        while chunk := rows.fetchmany(_CHUNK):
            found += [summary_of(summary, inputs) for summary, inputs in chunk]
        return found


def _select(pieces: Sequence[Piece], *, index: str = "") -> Piece:
    """`summaries WHERE …`"""
    by = f" INDEXED BY {index}" if index else ""
    where = " AND ".join(piece.sql for piece in pieces) or "1"
    values = tuple(value for piece in pieces for value in piece.values)
    return Piece(f"summaries{by} WHERE {where}", values)


def _may_be(leaves: Sequence[Leaf], field: str, value: str) -> bool:
    return all(
        matches(leaf, lambda _: value)
        for leaf in leaves
        if isinstance(leaf, Comparison) and leaf.field == field
    )


def summary_of(encoded: bytes, inputs: bytes | None) -> Summary:
    """A summary as it is kept."""
    summary = _DECODER.decode(encoded)
    return summary if inputs is None else replace(summary, inputs=_INPUTS.decode(inputs))
