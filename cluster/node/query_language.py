"""Conductor's query language: text to conditions. Pure.

    workflowType = 'order' AND (status IN (FAILED, TIMED_OUT) OR input.customerId = "c7")

AND binds before OR. Values stand bare or in either kind of quotes (a quote in a value is doubled);
times are Unix ms or ISO 8601. What cannot be read is an InvalidRequest that says where and what to
do about it.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple, NoReturn

from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.errors import InvalidRequest
from cluster.store.queries import (
    EVERYTHING,
    INPUT_PREFIX,
    NEWEST_FIRST,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Kind,
    Sort,
    Words,
)

QUERY_CHARS_MAX = 10_000
VALUES_MAX = 1_000
_DEPTH_MAX = 50
_WORDS_MAX = 20

_TEXT, _NUMBER, _TIME, _NAMES = Kind.TEXT, Kind.NUMBER, Kind.TIME, Kind.NAMES


class Fields(NamedTuple):
    """What may be asked of one kind of thing."""

    kinds: Mapping[str, Kind]
    statuses: frozenset[str]
    sortable: frozenset[str]
    aliases: Mapping[str, str]
    """Other names for the same, in lower case."""
    has_inputs: bool


WORKFLOW = Fields(
    kinds={
        "workflowId": _TEXT,
        "workflowType": _TEXT,
        "version": _NUMBER,
        "status": _TEXT,
        "correlationId": _TEXT,
        "startTime": _TIME,
        "updateTime": _TIME,
        "endTime": _TIME,
        "executionTime": _NUMBER,
        "priority": _NUMBER,
        "reasonForIncompletion": _TEXT,
        "failedReferenceTaskNames": _NAMES,
        "failedTaskNames": _NAMES,
        "event": _TEXT,
        "parentWorkflowId": _TEXT,
        "createdBy": _TEXT,
        "idempotencyKey": _TEXT,
        "classifier": _TEXT,
    },
    statuses=frozenset(status.value for status in WorkflowStatus),
    sortable=frozenset(
        {
            *("workflowId", "workflowType", "version", "status", "correlationId"),
            *("startTime", "updateTime", "endTime", "executionTime", "priority"),
        }
    ),
    aliases={"workflowname": "workflowType", "name": "workflowType", "createtime": "startTime"},
    has_inputs=True,
)

TASK = Fields(
    kinds={
        "taskId": _TEXT,
        "taskType": _TEXT,
        "taskDefName": _TEXT,
        "referenceTaskName": _TEXT,
        "workflowId": _TEXT,
        "workflowType": _TEXT,
        "status": _TEXT,
        "correlationId": _TEXT,
        "scheduledTime": _TIME,
        "startTime": _TIME,
        "updateTime": _TIME,
        "endTime": _TIME,
        "executionTime": _NUMBER,
        "queueWaitTime": _NUMBER,
        "priority": _NUMBER,
        "reasonForIncompletion": _TEXT,
        "workerId": _TEXT,
        "domain": _TEXT,
    },
    statuses=frozenset(status.value for status in TaskStatus),
    sortable=frozenset(
        {
            *("taskId", "taskType", "taskDefName", "workflowId", "workflowType", "status"),
            *("scheduledTime", "startTime", "updateTime", "endTime", "executionTime"),
            *("queueWaitTime",),
        }
    ),
    aliases={"workflowinstanceid": "workflowId", "taskname": "taskDefName"},
    has_inputs=False,
)


def parse(text: str, fields: Fields) -> Condition:
    """The condition that a text stands for; an empty one asks for everything. InvalidRequest."""
    if len(text) > QUERY_CHARS_MAX:
        raise InvalidRequest(f"The query has more than {QUERY_CHARS_MAX} characters; shorten it")
    return _Parser(text, fields).parse()


def parse_words(text: str) -> Condition:
    """The condition of a free text: `*` and nothing ask for everything, else every word, or
    phrase in quotes, has to be there. InvalidRequest."""
    words = [
        (phrase or word).strip()
        for phrase, word in _PHRASES.findall(text)
        if (phrase or word).strip(" *")
    ]
    if len(words) > _WORDS_MAX:
        raise InvalidRequest(f"freeText has more than {_WORDS_MAX} words; leave some out")
    return Words(tuple(dict.fromkeys(words))) if words else EVERYTHING


_PHRASES = re.compile(r'"([^"]*)"|(\S+)')


def parse_sort(text: str, fields: Fields) -> tuple[Sort, ...]:
    """`field:ASC|field:DESC`; `,` separates too, and without a direction it is ASC.
    InvalidRequest."""
    sorts: dict[str, Sort] = {}
    for part in re.split(r"[|,]", text):
        name, _, direction = (piece.strip() for piece in part.partition(":"))
        # `startTime:ASC|DESC` is how Conductor's documents write the choice of one of them.
        if not name or name.upper() in ("ASC", "DESC"):
            continue
        field = _field_of(name, fields)
        if field not in fields.sortable:
            raise InvalidRequest(
                f"sort: results are not sorted by '{name[:100]}'; by: "
                f"{', '.join(sorted(fields.sortable))}"
            )
        if direction.upper() not in ("", "ASC", "DESC"):
            raise InvalidRequest(f"sort: '{part.strip()[:100]}' must end in :ASC or :DESC")
        sorts.setdefault(field, Sort(field, direction.upper() == "DESC"))
    return tuple(sorts.values()) or NEWEST_FIRST


def _field_of(name: str, fields: Fields) -> str | None:
    if name in fields.kinds:
        return name
    lowered = name.lower()
    if lowered in fields.aliases:
        return fields.aliases[lowered]
    return next((field for field in fields.kinds if field.lower() == lowered), None)


class _Token(NamedTuple):
    kind: str
    """word, text (it stood in quotes), sign, end"""
    text: str
    at: int

    @property
    def keyword(self) -> str:
        return self.text.upper() if self.kind == "word" else ""


_TOKENS = re.compile(
    r"""\s*(?: (?P<text>'(?:[^']|'')*' | "(?:[^"]|"")*")
             | (?P<sign><= | >= | != | <> | == | [=<>(),])
             | (?P<word>[^\s=<>!(),'"]+)
             | (?P<end>$) )""",
    re.VERBOSE,
)
_SIGNS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_OPERATORS = (
    "=, !=, <, <=, >, >=, IN (...), NOT IN (...), BETWEEN ... AND ..., STARTS_WITH, IS NULL,"
    " IS NOT NULL"
)


class _Parser:
    """Recursive descent over one text."""

    def __init__(self, text: str, fields: Fields) -> None:
        self._text = text
        self._fields = fields
        self._depth = 0
        self._tokens = self._split()
        self._next = 0

    def parse(self) -> Condition:
        if self._token.kind == "end":
            return EVERYTHING
        condition = self._any()
        if self._token.kind != "end":
            self._refuse("expected AND, OR or the end")
        return condition

    # -- grammar

    def _any(self) -> Condition:
        parts = [self._all()]
        while self._take("OR"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self) -> Condition:
        parts = [self._one()]
        while self._take("AND"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _one(self) -> Condition:
        if not self._take_sign("("):
            return self._comparison()
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            self._refuse(f"parentheses are nested more than {_DEPTH_MAX} deep")
        condition = self._any()
        if not self._take_sign(")"):
            self._refuse("expected ) or AND or OR")
        self._depth -= 1
        return condition

    def _comparison(self) -> Comparison:
        if self._token.kind != "word" or self._token.keyword in ("AND", "OR"):
            self._refuse("expected the name of a field or (")
        field, kind = self._field()
        sign = _SIGNS.get(self._token.text) if self._token.kind == "sign" else None
        if sign is not None:
            self._next += 1
            value = self._value(field, kind)
            negated = sign == "!="
            operator = "=" if negated else sign
            if operator == "=" and isinstance(value, str) and "*" in value:
                operator, value = _wildcard(value)
            return Comparison(field, operator, (value,), negated)
        if self._take("IS"):
            negated = self._take("NOT")
            if not self._take("NULL"):
                self._refuse("expected NULL or NOT NULL")
            return Comparison(field, "IS NULL", (), negated)
        if self._take("BETWEEN"):
            low = self._value(field, kind)
            if not self._take("AND"):
                self._refuse("expected AND and the upper end of BETWEEN")
            return Comparison(field, "BETWEEN", (low, self._value(field, kind)))
        if self._take("STARTS_WITH"):
            if kind in (_NUMBER, _TIME):
                self._refuse(f"{field} is a {kind.value}, STARTS_WITH wants a text field")
            return Comparison(field, "STARTS_WITH", (self._value(field, kind),))
        negated = self._take("NOT")
        if not self._take("IN"):
            self._refuse(f"expected an operator after {field}: {_OPERATORS}")
        return Comparison(field, "IN", self._list(field, kind), negated)

    def _field(self) -> tuple[str, Kind]:
        name = self._token.text
        if self._fields.has_inputs and name.startswith(INPUT_PREFIX) and name != INPUT_PREFIX:
            self._next += 1
            return name, Kind.INPUT
        field = _field_of(name, self._fields)
        if field is None:
            inputs = ", or input.<name>" if self._fields.has_inputs else ""
            known = ", ".join(self._fields.kinds)
            self._refuse(f"there is no field '{name[:100]}'; fields: {known}{inputs}")
        self._next += 1
        return field, self._fields.kinds[field]

    def _list(self, field: str, kind: Kind) -> tuple[str | int, ...]:
        if not self._take_sign("("):
            self._refuse("expected ( and the values of IN")
        values = [self._value(field, kind)]
        while self._take_sign(","):
            values.append(self._value(field, kind))
            if len(values) > VALUES_MAX:
                self._refuse(f"IN takes at most {VALUES_MAX} values")
        if not self._take_sign(")"):
            self._refuse("expected , or )")
        return tuple(dict.fromkeys(values))

    def _value(self, field: str, kind: Kind) -> str | int:
        token = self._token
        if token.kind not in ("word", "text"):
            self._refuse("expected a value; one with spaces or signs in it stands in quotes")
        value: str | int = token.text
        if kind is _NUMBER:
            if not _INTEGER.fullmatch(token.text):
                self._refuse(f"{field} is compared with a whole number")
            value = int(token.text)
        elif kind is _TIME:
            value = self._time(token.text)
        elif field == "status":
            value = token.text.upper()
            if value not in self._fields.statuses and "*" not in value:
                self._refuse(f"status is one of {', '.join(sorted(self._fields.statuses))}")
        elif field.endswith("Id") and field != "correlationId":
            value = token.text.lower()
        self._next += 1
        return value

    def _time(self, text: str) -> int:
        if _INTEGER.fullmatch(text):
            return int(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self._refuse("a time is Unix ms or ISO 8601, as '2026-05-04' or '2026-05-04T10:00:00Z'")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)

    # -- tokens

    def _split(self) -> list[_Token]:
        tokens: list[_Token] = []
        at = 0
        while not tokens or tokens[-1].kind != "end":
            found = _TOKENS.match(self._text, at)
            if found is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                what = "this quote is not closed" if self._text[at] in "'\"" else "not understood"
                self._fail(what, at)
            kind = found.lastgroup or "end"
            text = found[kind]
            if kind == "text":
                text = text[1:-1].replace(text[0] * 2, text[0])
            tokens.append(_Token(kind, text, found.start(kind)))
            at = found.end()
        return tokens

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, keyword: str) -> bool:
        if self._token.keyword != keyword:
            return False
        self._next += 1
        return True

    def _take_sign(self, sign: str) -> bool:
        if self._token.kind != "sign" or self._token.text != sign:
            return False
        self._next += 1
        return True

    def _refuse(self, what: str) -> NoReturn:
        self._fail(what, self._token.at)

    def _fail(self, what: str, at: int) -> NoReturn:
        rest = self._text[at : at + 30]
        where = f"before '{rest}'" if rest.strip() else "at its end"
        raise InvalidRequest(f"The query cannot be read at character {at + 1}, {where}: {what}")


_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def _wildcard(value: str) -> tuple[str, str]:
    """Operator and value of `= text`, where the text has `*` in it."""
    if value.index("*") == len(value) - 1 and len(value) > 1:
        return "STARTS_WITH", value[:-1]
    return "LIKE", value
