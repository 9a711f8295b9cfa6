"""One search in Cassandra, whose indexes know neither OR nor IN nor an order.

A query becomes alternatives (an OR of ANDs), each looked up by the best it names: workflows,
correlation ids, an input value that few have; else by windows of time, newest first, each one
request per definition and status. What they bring is judged here, so a look-up may bring too much.
The total is counted by the same indexes, without the summaries.
"""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from cluster.clock import Clock
from cluster.engine.transitions import WorkflowStatus
from cluster.errors import NotFound
from cluster.ids import WorkflowId, from_bytes, parse_workflow_id, time_of, to_bytes
from cluster.store.cassandra.session import Prepared, Session
from cluster.store.documents import in_order, is_found, term
from cluster.store.ports import Found, Summary
from cluster.store.queries import (
    INPUT_PREFIX,
    NEWEST_FIRST,
    Comparison,
    Leaf,
    Query,
    alternatives,
    bounds,
    is_equality,
    matches,
    spellings,
    wanted,
)

BUCKET_MS = 600_000
_FEW = 1_000
"""Workflows with an input value that are better looked at all than found along time."""
_ARMS_MAX = 24
_PAGE_ROWS = 2_000
_WINDOW_MS = 3_600_000
_WINDOW_ROWS = 3_000
"""A window that brings more was too wide: the next one is narrower."""
_WIDER = 4
_LAST_PART = 4
_LATEST_MS = 1 << 60
_MANY = 1_000
_KNOWN_MS, _KNOWN_FULL_MS = 5_000, 600_000
"""How long a total of many, or of HITS_MAX, is not counted again."""
_KNOWN_MAX = 10_000
_AT_ONCE = 64
_STATUSES = tuple(status.value for status in WorkflowStatus)
_DECODER = msgspec.msgpack.Decoder(Summary)
_INPUTS = msgspec.msgpack.Decoder(dict[str, str])


class Arm(NamedTuple):
    """What one look-up along time asks for; None: any."""

    name: str | None
    status: str | None


class Finder:
    """Carries out searches."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._totals: dict[tuple[Arm, int, int], tuple[int, int]] = {}
        self._widths: dict[Arm, int] = {}
        prepare = session.prepare
        self._by_id = prepare(
            "SELECT summary, inputs FROM summaries"
            " WHERE bucket = ? AND spread = ? AND workflow_id = ?"
        )
        self._correlated = prepare(
            "SELECT workflow_id FROM correlated WHERE correlation_id = ? LIMIT ?"
        )
        self._with_input = prepare("SELECT workflow_id FROM input_values WHERE term = ? LIMIT ?")
        self._windows = self._variants("summary, inputs")
        self._keys = self._variants("workflow_id")

    def _variants(self, columns: str) -> dict[tuple[bool, bool], Prepared]:
        """By whether a name is given, and a status."""
        return {
            (named, stated): self._session.prepare(
                f"SELECT {columns} FROM summaries WHERE start_ms >= ? AND start_ms <= ?"
                + (" AND name = ?" if named else "")
                + (" AND status = ?" if stated else "")
            )
            for named, stated in product((False, True), repeat=2)
        }

    async def find(
        self, query: Query, *, start: int, size: int, hits_max: int, rows_max: int
    ) -> Found:
        """That of SearchIndex."""
        choices = alternatives(query.condition)
        search = _Search(self, query, start + size, hits_max, rows_max)
        await search.look_up([()] if choices is None else choices)
        ordered = in_order(query, search.found.values())
        total = min(max(search.total, len(ordered)), hits_max)
        if search.is_partial:
            total = min(len(ordered), hits_max)
        return Found(ordered[start : start + size], total, search.is_partial)

    async def by_ids(self, ids: Iterable[WorkflowId]) -> list[Summary]:
        """Those summaries that are there."""
        asked = list(ids)
        found: list[Summary] = []
        for at in range(0, len(asked), _AT_ONCE):
            part = asked[at : at + _AT_ONCE]
            reads = [
                self._session.one(self._by_id, (*place_of(one), to_bytes(one))) for one in part
            ]
            found += [summary_of(*row) for row in await asyncio.gather(*reads) if row is not None]
        return found

    async def correlated(self, correlation_id: str, limit: int) -> list[WorkflowId]:
        return await self._ids(self._correlated, (correlation_id, limit))

    async def with_input(self, name: str, text: str, limit: int) -> list[WorkflowId]:
        return await self._ids(self._with_input, (term(name, text), limit))

    async def _ids(self, prepared: Prepared, values: tuple[object, ...]) -> list[WorkflowId]:
        rows = await self._session.all(prepared, values, page_rows=_PAGE_ROWS)
        return [WorkflowId(from_bytes(key)) for (key,) in rows]

    async def window(self, arm: Arm, low: int, high: int, limit: int) -> list[Summary]:
        """Summaries that started in [low, high], in no order; `limit` of them or some more."""
        rows: list[Any] = []
        async for page in self._session.pages(
            *_asked(self._windows, arm, low, high), page_rows=min(_PAGE_ROWS, limit + 1)
        ):
            rows += page
            if len(rows) > limit:
                break
        return [summary_of(*row) for row in rows]

    async def count(self, arm: Arm, low: int, high: int, hits_max: int) -> int:
        """How many started in [low, high]; not above `hits_max`. Many are counted now and then."""
        now_ms = self._clock.monotonic_ms()
        # The end of what has no end moves with the clock, and is the same all the same.
        key = (arm, low, min(high, _LATEST_MS))
        known = self._totals.get(key)
        if known is not None and known[1] > now_ms and known[0] <= hits_max:
            return known[0]
        total = 0
        async for page in self._session.pages(
            *_asked(self._keys, arm, low, high), page_rows=_PAGE_ROWS
        ):
            total += len(page)
            if total >= hits_max:
                break
        total = min(total, hits_max)
        if total >= _MANY:
            if len(self._totals) >= _KNOWN_MAX:
                self._totals.clear()
            kept_ms = _KNOWN_FULL_MS if total >= hits_max else _KNOWN_MS
            self._totals[key] = (total, now_ms + kept_ms)
        return total

    def width_of(self, arm: Arm) -> int:
        """How long a first window may be to bring about as many as it should."""
        return self._widths.get(arm, _WINDOW_MS)

    def note_width(self, arm: Arm, width_ms: int) -> None:
        if len(self._widths) >= _KNOWN_MAX:
            self._widths.clear()
        self._widths[arm] = max(1_000, width_ms)

    def now_ms(self) -> int:
        return self._clock.now_ms()


class _Walk(NamedTuple):
    """An arm and the times it is walked through, both ends included."""

    arm: Arm
    low: int
    high: int


def _overlap(one: _Walk, other: _Walk) -> bool:
    """Whether a summary may be in both."""
    return all(
        mine is None or its is None or mine == its
        for mine, its in zip(one.arm, other.arm, strict=True)
    ) and max(one.low, other.low) <= min(one.high, other.high)


class _Search:
    """What one search has found so far."""

    def __init__(
        self, finder: Finder, query: Query, wanted_count: int, hits_max: int, rows_max: int
    ) -> None:
        self._finder = finder
        self._query = query
        self._wanted = wanted_count
        self._hits_max = hits_max
        self._rows_left = rows_max
        self._rows_end = rows_max // _LAST_PART
        """With so few left, it is not worth looking for a window that fits."""
        self.found: dict[WorkflowId, Summary] = {}
        self.total = 0
        self.is_partial = False

    async def look_up(self, choices: Sequence[Sequence[Leaf]]) -> None:
        """Find what fulfils one of some alternatives."""
        walks: list[_Walk] = []
        is_whole = self._query.sort == NEWEST_FIRST
        for leaves in choices:
            ids = await self._named(leaves)
            if ids is not None:
                self._take(await self._finder.by_ids(ids))
                is_whole = is_whole and len(choices) == 1
                continue
            low, high = bounds(leaves, "startTime")
            span = (0 if low is None else max(0, low), _LATEST_MS if high is None else high)
            if span[0] <= span[1]:
                arms = _arms(leaves)
                # Only what the indexes judge whole can be counted by them.
                is_whole = is_whole and _is_told(leaves, arms)
                walks += [_Walk(arm, *span) for arm in arms]
        if any(_overlap(one, other) for one, other in combinations(walks, 2)):
            is_whole = False
        for walk in walks:
            await self._walk(walk, is_whole=is_whole)

    async def _named(self, leaves: Sequence[Leaf]) -> list[WorkflowId] | None:
        """The workflows that can be meant, by what names them; None: those are too many."""
        named = wanted(leaves, "workflowId")
        if named is not None:
            return [one for text in named for one in _id(str(text))]
        correlation_ids = wanted(leaves, "correlationId")
        if correlation_ids is not None and "" not in correlation_ids:
            found: dict[WorkflowId, None] = {}
            for correlation_id in correlation_ids:
                limit = self._rows_left + 1
                ids = await self._finder.correlated(str(correlation_id), limit)
                self.is_partial |= len(ids) == limit
                found |= dict.fromkeys(ids[: self._rows_left])
            return list(found)
        for leaf in leaves:
            if isinstance(leaf, Comparison) and leaf.field.startswith(INPUT_PREFIX):
                if is_equality(leaf) and "" not in leaf.values:
                    few = await self._with_input(leaf)
                    if few is not None:
                        return few
        return None

    async def _with_input(self, leaf: Comparison) -> list[WorkflowId] | None:
        name = leaf.field[len(INPUT_PREFIX) :]
        found: dict[WorkflowId, None] = {}
        for text in {text for value in leaf.values for text in spellings(str(value))}:
            found |= dict.fromkeys(await self._finder.with_input(name, text, _FEW + 1))
            if len(found) > _FEW:
                return None
        return list(found)

    async def _walk(self, walk: "_Walk", *, is_whole: bool) -> None:
        """Windows of time, newest first, until there is enough of it or nothing left."""
        finder, (arm, low, high) = self._finder, walk
        if is_whole and self.total < self._hits_max:
            self.total += await finder.count(arm, low, high, self._hits_max)
        end, width = high, finder.width_of(arm)
        hits = 0
        while True:
            begin = max(low, min(end, finder.now_ms()) - width)
            limit = min(_WINDOW_ROWS, self._rows_left)
            rows = await finder.window(arm, begin, end, limit)
            if len(rows) > limit and self._rows_left <= self._rows_end:
                self.is_partial = True
                return
            if len(rows) > limit and width > 1:
                # Too wide, and in no order: again, narrower.
                width = max(1, width // (_WIDER * _WIDER))
                continue
            hits += self._take(rows)
            self._rows_left -= len(rows)
            self.is_partial |= len(rows) > limit
            if begin <= low and len(rows) <= limit:
                return
            if is_whole and hits >= self._wanted:
                finder.note_width(arm, width)
                return
            if self._rows_left <= 0:
                self.is_partial = True
                return
            if len(rows) < _WINDOW_ROWS // _WIDER:
                width *= _WIDER
            end = begin - 1

    def _take(self, summaries: Iterable[Summary]) -> int:
        """Keep those that are wanted; how many they are."""
        hits = [one for one in summaries if is_found(self._query, one)]
        self.found.update({one.workflow_id: one for one in hits})
        return len(hits)


def _arms(leaves: Sequence[Leaf]) -> list[Arm]:
    names = wanted(leaves, "workflowType")
    statuses = [
        status
        for status in _STATUSES
        if all(
            matches(leaf, lambda _: status)  # noqa: B023 - it is called at once
            for leaf in leaves
            if isinstance(leaf, Comparison) and leaf.field == "status"
        )
    ]
    named: list[str | None] = [None] if names is None else [*sorted(map(str, names))]
    stated: list[str | None] = [*statuses]
    if len(statuses) == len(_STATUSES) or len(named) * len(stated) > _ARMS_MAX:
        stated = [None]
    if len(named) > _ARMS_MAX:
        named = [None]
    return [Arm(name, status) for name, status in product(named, stated)]


def _is_told(leaves: Sequence[Leaf], arms: Sequence[Arm]) -> bool:
    """Whether arms and times say all that `leaves` do."""
    told = {"startTime"}
    told |= {"workflowType"} if all(arm.name is not None for arm in arms) else set()
    told |= {"status"} if all(arm.status is not None for arm in arms) else set()
    return all(
        isinstance(leaf, Comparison)
        and leaf.field in told
        and (leaf.field == "status" or not leaf.is_negated)
        and (leaf.field != "workflowType" or is_equality(leaf))
        and (leaf.field != "startTime" or leaf.operator not in ("IN", "IS NULL"))
        for leaf in leaves
    )


def place_of(workflow_id: WorkflowId) -> tuple[int, int]:
    """(bucket, spread) of a summary."""
    # The digit before the slot: the ids of a family share slot and time, not this.
    return time_of(workflow_id) // BUCKET_MS, int(workflow_id[26], 16)


def summary_of(encoded: bytes, inputs: bytes | None) -> Summary:
    """A summary as it is kept."""
    summary = _DECODER.decode(encoded)
    return summary if inputs is None else replace(summary, inputs=_INPUTS.decode(inputs))


def _id(text: str) -> list[WorkflowId]:
    try:
        return [parse_workflow_id(text)]
    except NotFound:
        return []


def _asked(
    variants: dict[tuple[bool, bool], Prepared], arm: Arm, low: int, high: int
) -> tuple[Prepared, tuple[object, ...]]:
    values = [low, high, *(value for value in arm if value is not None)]
    return variants[(arm.name is not None, arm.status is not None)], tuple(values)
