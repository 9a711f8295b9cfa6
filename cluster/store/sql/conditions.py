"""Conditions of a search as SQL over `summaries`. Values are bound, never written into the text."""

from collections.abc import Sequence
from typing import NamedTuple

from cluster.errors import NotFound
from cluster.ids import parse_workflow_id, to_bytes
from cluster.store.documents import CLASSIFIER, term
from cluster.store.queries import INPUT_PREFIX, Comparison, Leaf, spellings, wanted


class Piece(NamedTuple):
    """A part of a statement with what is bound in it, in order."""

    sql: str
    values: tuple[object, ...] = ()


NUMBERS = {
    "version": "version",
    "startTime": "start_ms",
    "updateTime": "nullif(update_ms, 0)",
    "endTime": "nullif(end_ms, 0)",
    "executionTime": "CASE WHEN end_ms > 0 THEN end_ms - start_ms END",
    "priority": "priority",
}
_TEXTS = {
    "workflowType": "name",
    "status": "status",
    "correlationId": "coalesce(correlation_id, '')",
    "parentWorkflowId": "coalesce(parent_id, '')",
    "classifier": f"'{CLASSIFIER}'",
}
SORTS = {
    "workflowId": "workflow_id",
    "workflowType": "name",
    "status": "status",
    "correlationId": "coalesce(correlation_id, '')",
    **{field: f"coalesce({column}, 0)" for field, column in NUMBERS.items()},
    # As it stands, for the indexes are in its order.
    "startTime": "start_ms",
}
_COMPARED = frozenset({"<", "<=", ">", ">="})


def where(leaves: Sequence[Leaf]) -> list[Piece] | None:
    """All of the conditions; None: some cannot be told in SQL, and are judged in Python."""
    pieces = [_piece(leaf) for leaf in leaves]
    return None if None in pieces else [piece for piece in pieces if piece is not None]


def told(leaves: Sequence[Leaf]) -> list[Piece]:
    """Those of the conditions that can be told in SQL."""
    return [piece for piece in map(_piece, leaves) if piece is not None]


def ids(leaves: Sequence[Leaf]) -> list[bytes] | None:
    """The only workflows that can be meant; None: no such bound."""
    found = wanted(leaves, "workflowId")
    return None if found is None else [key for text in found for key in _key(str(text))]


def terms(name: str, comparison: Comparison) -> list[int]:
    """What `input_values` holds where an input is equal to one of some values."""
    texts = {text for value in comparison.values for text in spellings(str(value))}
    return [term(name, text) for text in sorted(texts)]


def marks(count: int) -> str:
    return ", ".join("?" * count)


def _piece(leaf: Leaf) -> Piece | None:
    if not isinstance(leaf, Comparison):
        return None
    if leaf.field.startswith(INPUT_PREFIX):
        positive = _input(leaf)
    elif leaf.field == "workflowId":
        positive = _id(leaf)
    elif leaf.field in NUMBERS:
        positive = _number(leaf, NUMBERS[leaf.field])
    elif leaf.field in _TEXTS:
        positive = _text(leaf, _TEXTS[leaf.field])
    else:
        return None
    if positive is None or not leaf.is_negated:
        return positive
    # What is absent is not equal: NULL counts as false before it is negated.
    return Piece(f"NOT coalesce({positive.sql}, 0)", positive.values)


def _number(leaf: Comparison, column: str) -> Piece | None:
    values = leaf.values
    if leaf.operator == "IS NULL":
        return Piece(f"({column}) IS NULL")
    if leaf.operator in ("=", "IN"):
        return Piece(f"({column}) IN ({marks(len(values))})", values)
    if leaf.operator == "BETWEEN":
        return Piece(f"({column}) BETWEEN ? AND ?", values)
    if leaf.operator in _COMPARED:
        return Piece(f"({column}) {leaf.operator} ?", values)
    return None


def _text(leaf: Comparison, column: str) -> Piece | None:
    values = leaf.values
    if leaf.operator == "IS NULL":
        return Piece(f"({column} = '')")
    if leaf.operator in ("=", "IN"):
        return Piece(f"{column} IN ({marks(len(values))})", values)
    if leaf.operator == "BETWEEN":
        return Piece(f"({column} <> '' AND {column} BETWEEN ? AND ?)", values)
    if leaf.operator in _COMPARED:
        return Piece(f"({column} <> '' AND {column} {leaf.operator} ?)", values)
    if leaf.operator == "STARTS_WITH":
        beginning = str(values[0])
        sql = f"({column} <> '' AND substr({column}, 1, ?) = ?)"
        return Piece(sql, (len(beginning), beginning))
    return None


def _id(leaf: Comparison) -> Piece | None:
    if leaf.operator == "IS NULL":
        return Piece("(workflow_id IS NULL)")
    if leaf.operator not in ("=", "IN"):
        return None
    keys = [key for value in leaf.values for key in _key(str(value))]
    return Piece(f"workflow_id IN ({marks(len(keys))})", tuple(keys))


def _input(leaf: Comparison) -> Piece | None:
    if leaf.operator not in ("=", "IN") or "" in leaf.values:
        return None
    found = terms(leaf.field[len(INPUT_PREFIX) :], leaf)
    sql = (
        "EXISTS (SELECT 1 FROM input_values"
        f" WHERE term IN ({marks(len(found))}) AND workflow_id = summaries.workflow_id)"
    )
    return Piece(sql, tuple(found))


def _key(text: str) -> list[bytes]:
    try:
        return [to_bytes(parse_workflow_id(text))]
    except NotFound:
        return []
