"""Searches over random summaries: every index finds what the memory index does, in its order."""

from random import Random

import pytest
from msgspec.structs import replace

from cluster.ids import WorkflowId
from cluster.store.documents import inputs_of
from cluster.store.memory.search import MemorySearchIndex
from cluster.store.ports import Found, Stores, Summary
from cluster.store.queries import (
    HITS_MAX,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Query,
    Sort,
    Words,
)
from tests.support.rows import workflow_id

pytestmark = pytest.mark.asyncio

NOW_MS = 1_795_000_000_000
DAY_MS = 86_400_000
STATUSES = ("RUNNING", "PAUSED", "COMPLETED", "FAILED", "TIMED_OUT", "TERMINATED")
NAMES = ("orders", "payments", "it's")
CUSTOMERS = ("c1", "c2", "5", "5.0", "")
SORTABLE = ("startTime", "updateTime", "endTime", "workflowType", "status", "priority", "version")


def random_summary(random: Random) -> Summary:
    start_ms = NOW_MS - random.randrange(90 * DAY_MS)
    status = random.choice(STATUSES)
    is_open = status in ("RUNNING", "PAUSED")
    return Summary(
        workflow_id=workflow_id(),
        name=random.choice(NAMES),
        version=random.randint(1, 3),
        status=status,
        start_ms=start_ms,
        update_ms=start_ms + random.randrange(DAY_MS),
        end_ms=0 if is_open else start_ms + random.randrange(DAY_MS),
        correlation_id=random.choice((None, "k1", "k2")),
        parent_workflow_id=random.choice((None, workflow_id())),
        priority=random.choice((0, 5)),
        reason=random.choice((None, "no card left", "card-stolen")),
        created_by=random.choice((None, "me")),
        failed_reference_task_names=random.choice(((), ("pay",), ("pay", "ship"))),
        inputs=random.choice(
            (
                None,
                inputs_of(b'{"customer":"%s","amount":5,"vip":true}' % b"c1"),
                inputs_of(b'{"customer":"c2","amount":12.5}'),
                {"customer": random.choice(CUSTOMERS[:4])},
            )
        ),
    )


def random_leaf(random: Random, summaries: list[Summary]) -> Condition:
    some = random.choice(summaries)
    time_ms = some.start_ms + random.choice((-1, 0, 1))
    negated = random.random() < 0.25
    texts: list[tuple[str, tuple[str, ...]]] = [
        ("workflowType", NAMES),
        ("status", STATUSES),
        ("correlationId", ("k1", "k2", "k3", "")),
        ("parentWorkflowId", ("", some.parent_workflow_id or "x")),
        ("reasonForIncompletion", ("no card left", "x")),
        ("failedReferenceTaskNames", ("pay", "ship", "x")),
        ("input.customer", CUSTOMERS),
        ("input.amount", ("5", "12.5", "5.0", "1e3")),
        ("input.none", ("x",)),
        ("workflowId", (some.workflow_id, "no-id")),
        ("createdBy", ("me",)),
        ("classifier", ("workflow", "agent")),
    ]
    kind = random.randrange(10)
    if kind == 0:
        return Words((random.choice(("card", "c1", "ord*", "k2", "CARD-stolen", "nothing")),))
    if kind <= 2:
        field = random.choice(("startTime", "updateTime", "endTime"))
        operator = random.choice(("<", "<=", ">", ">=", "=", "BETWEEN", "IS NULL"))
        bounds = (time_ms, time_ms + 20 * DAY_MS)
        count = {"BETWEEN": 2, "IS NULL": 0}.get(operator, 1)
        return Comparison(field, operator, bounds[:count], negated)
    if kind == 3:
        field = random.choice(("version", "priority", "executionTime"))
        operator = random.choice(("=", "IN", "<", ">="))
        return Comparison(field, operator, (random.choice((0, 1, 2, 5)),), negated)
    field, values = random.choice(texts)
    operator = random.choice(
        ("=", "=", "=", "IN", "IN", "STARTS_WITH", "LIKE", "IS NULL", "<", ">=")
    )
    if operator == "IN":
        chosen = tuple(dict.fromkeys(random.choices(values, k=2)))
        return Comparison(field, operator, chosen, negated)
    if operator == "IS NULL":
        return Comparison(field, operator, (), negated)
    value = random.choice(values)
    if operator == "STARTS_WITH":
        value = value[:2]
    if operator == "LIKE":
        value = f"*{value[1:]}"
    return Comparison(field, operator, (value,), negated)


def random_condition(random: Random, summaries: list[Summary], depth: int = 0) -> Condition:
    if depth == 3 or random.random() < 0.4:
        return random_leaf(random, summaries)
    parts = tuple(
        random_condition(random, summaries, depth + 1) for _ in range(random.randint(1, 3))
    )
    return AllOf(parts) if random.random() < 0.6 else AnyOf(parts)


def random_query(random: Random, summaries: list[Summary]) -> Query:
    condition = random_condition(random, summaries)
    if random.random() < 0.6:
        return Query(condition)
    fields = random.sample(SORTABLE, k=random.randint(1, 2))
    return Query(condition, tuple(Sort(field, random.random() < 0.5) for field in fields))


async def found(index: object, query: Query, **page: int) -> Found:
    asked = {"start": 0, "size": 50, **page}
    result: Found = await index.find(query, **asked)  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize("seed", range(4))
async def test_random_searches(stores: Stores, seed: int) -> None:
    random = Random(seed)
    summaries = [random_summary(random) for _ in range(120)]
    model = MemorySearchIndex()
    for index in (model, stores.search):
        await index.write([(one, 1) for one in summaries])
        # What does not come with a later write stays.
        await index.write(
            [(change(one), 2) for one in summaries[::3]],
        )
    for number in range(60):
        query = random_query(random, summaries)
        page = {"start": random.choice((0, 0, 3)), "size": random.choice((1, 10, 200))}
        wanted = await found(model, query, **page)
        shown = await found(stores.search, query, **page)
        assert [one.workflow_id for one in shown.summaries] == [
            one.workflow_id for one in wanted.summaries
        ], (number, query)
        assert list(shown.summaries) == list(wanted.summaries)
        assert shown.total == wanted.total, (number, query)
        assert not shown.is_partial


def change(summary: Summary) -> Summary:
    return replace(summary, status="COMPLETED", end_ms=summary.start_ms + 7, inputs=None)


async def test_removed_ones_are_not_found(stores: Stores) -> None:
    random = Random(1)
    summaries = [random_summary(random) for _ in range(40)]
    await stores.search.write([(one, 1) for one in summaries])
    await stores.search.remove([(one.workflow_id, 1) for one in summaries[10:]])
    everything = await found(stores.search, Query())
    assert sorted(one.workflow_id for one in everything.summaries) == sorted(
        one.workflow_id for one in summaries[:10]
    )
    by_input = await found(stores.search, Query(Comparison("input.customer", "=", ("c1",))))
    assert by_input.total == sum(
        (one.inputs or {}).get("customer") == "c1" for one in summaries[:10]
    )


async def test_bounds(stores: Stores) -> None:
    ids: list[WorkflowId] = [workflow_id() for _ in range(60)]
    await stores.search.write(
        [
            (
                Summary(
                    workflow_id=one,
                    name="orders",
                    version=1,
                    status="COMPLETED",
                    start_ms=NOW_MS + number,
                    update_ms=NOW_MS,
                    reason=f"r{number}",
                ),
                1,
            )
            for number, one in enumerate(ids)
        ]
    )
    told = Comparison("status", "=", ("COMPLETED",))
    many = await found(stores.search, Query(told), hits_max=50, size=5)
    assert many.total == 50
    assert [one.workflow_id for one in many.summaries] == ids[:-6:-1]
    # No index knows reasons: the newest 20 are looked at, and it is said that these are not all.
    judged = Query(AllOf((told, Comparison("reasonForIncompletion", "STARTS_WITH", ("r4",)))))
    if not isinstance(stores.search, MemorySearchIndex):
        part = await found(stores.search, judged, rows_max=20)
        assert part.is_partial
        newest = [one.workflow_id for one in part.summaries]
        assert newest
        assert newest == ids[49:39:-1][: len(newest)]
    whole = await found(stores.search, judged)
    assert (whole.total, whole.is_partial) == (11, False)
    assert whole.total < HITS_MAX
