"""Executions of schedules that a client looks for: Conductor's query, free text, order and page."""

import re
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import InvalidRequest

SCANNED_MAX = 10_000
"""Executions that one search looks at."""

Json = dict[str, Any]

_CLAUSE = re.compile(
    r"(\w+)\s*(?:(=|!=|<=|>=|<|>)\s*(.*)|IN\s*\((.*)\))", re.ASCII | re.IGNORECASE | re.DOTALL
)
_TIMES = ("scheduledTime", "executionTime")
_TEXTS = ("scheduleName", "workflowName", "workflowId", "executionId", "state")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda one, other: bool(one == other),
    "!=": lambda one, other: bool(one != other),
    "<": lambda one, other: bool(one < other),
    ">": lambda one, other: bool(one > other),
    "<=": lambda one, other: bool(one <= other),
    ">=": lambda one, other: bool(one >= other),
}


@dataclass(slots=True)
class Query:
    """What has to hold for an execution."""

    schedules: list[str] | None = None
    """Those of these schedules only; None: of any."""
    conditions: list[Callable[[Json], bool]] = field(default_factory=list)

    def takes(self, execution: Json) -> bool:
        return all(holds(execution) for holds in self.conditions)


def parse(query: str, free_text: str) -> Query:
    """`scheduleName IN (a,b) AND state = FAILED AND scheduledTime > 1700000000000`. A clause that
    is none is the name of a schedule, as in Conductor. InvalidRequest."""
    parsed = Query()
    for clause in re.split(r"\s+AND\s+", query.strip(), flags=re.IGNORECASE):
        if clause:
            _add(parsed, clause.strip())
    wanted = free_text.strip().lower()
    if wanted not in ("", "*"):
        parsed.conditions.append(lambda execution: wanted in _text_of(execution))
    return parsed


def _add(parsed: Query, clause: str) -> None:
    found = _CLAUSE.fullmatch(clause)
    if found is None:
        _only(parsed, [_plain(clause)])
        return
    name, operator, value, several = found.groups()
    if name not in (*_TIMES, *_TEXTS):
        raise InvalidRequest(
            f"'{name[:100]}' is no field of an execution; there are {', '.join(_TIMES + _TEXTS)}"
        )
    if several is not None:
        values = [_plain(one) for one in several.split(",") if one.strip()]
        if name == "scheduleName":
            _only(parsed, values)
        parsed.conditions.append(lambda execution: str(execution.get(name, "")) in values)
        return
    plain: Any = _plain(value)
    if name in _TIMES:
        if not re.fullmatch(r"[0-9]{1,18}", plain):
            raise InvalidRequest(f"'{plain[:100]}' is no Unix time in ms, as {name} takes it")
        plain = int(plain)
    elif name == "scheduleName" and operator == "=":
        _only(parsed, [plain])
    compare, absent = _COMPARE[operator], 0 if name in _TIMES else ""
    parsed.conditions.append(lambda execution: compare(execution.get(name, absent), plain))


def _only(parsed: Query, names: list[str]) -> None:
    if parsed.schedules is not None:
        names = [name for name in names if name in parsed.schedules]
    parsed.schedules = list(dict.fromkeys(names))


def _plain(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _text_of(execution: Json) -> str:
    return " ".join(str(execution.get(name, "")) for name in (*_TEXTS, "reason")).lower()


async def found_in(executions: AsyncIterable[Json], query: Query, limit: int) -> list[Json]:
    """Those that the query takes, of the first `limit`."""
    found = []
    async for execution in executions:
        if query.takes(execution):
            found.append(execution)
        limit -= 1
        if limit <= 0:
            break
    return found


def in_order(found: list[Json], sort: Sequence[str]) -> list[Json]:
    """By `field` or `field:DESC`, the first one first; else the latest first. InvalidRequest."""
    found = sorted(found, key=lambda one: -int(one["scheduledTime"]))
    for one in reversed([part for text in sort for part in text.split(",") if part.strip()]):
        name, _, direction = one.strip().partition(":")
        if name not in (*_TIMES, *_TEXTS):
            raise InvalidRequest(f"Executions cannot be sorted by '{name[:100]}'")
        key = _key_of(name)
        found.sort(key=key, reverse=direction.strip().upper() == "DESC")
    return found


def _key_of(name: str) -> Callable[[Json], Any]:
    absent = 0 if name in _TIMES else ""
    return lambda execution: execution.get(name, absent)
