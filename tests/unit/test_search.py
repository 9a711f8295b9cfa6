"""Searches of a node: what the index says is checked against the store, and pages are filled."""

import asyncio

import msgspec
import pytest

from cluster.engine.model import Header
from cluster.engine.rows import HEADER_ROW, INPUT_ROW
from cluster.engine.transitions import WorkflowStatus
from cluster.ids import ShardId, WorkflowId
from cluster.node.search import Search
from cluster.node.summaries import describe_replayed
from cluster.node.task_search import workflows_with
from cluster.sharding.checkpoint import MergedRows, write_merged
from cluster.store.memory import open_memory
from cluster.store.ports import Row, Stores
from cluster.store.queries import EVERYTHING, AllOf, AnyOf, Comparison, Query
from tests.support.process import CLOCK
from tests.support.rows import workflow_id

pytestmark = pytest.mark.asyncio

RUNNING = Comparison("status", "=", ("RUNNING",))
encode = msgspec.msgpack.Encoder().encode


def rows_of(one: WorkflowId, at_ms: int, status: WorkflowStatus) -> list[Row]:
    header = Header("hash", "orders", 1, status, create_ms=at_ms, update_ms=at_ms)
    given = b'{"customer":"c%d","deep":{"x":1}}' % (at_ms % 2)
    return [Row(one, HEADER_ROW, encode(header)), Row(one, INPUT_ROW, given)]


async def filled(count: int) -> tuple[Stores, list[WorkflowId]]:
    """Running workflows, newest last, written by a checkpoint."""
    stores = open_memory(shard_count=4)
    ids = [workflow_id() for _ in range(count)]
    merged = MergedRows()
    for number, one in enumerate(ids):
        rows = rows_of(one, 1_000 + number, WorkflowStatus.RUNNING)
        merged.add(number + 1, [(ShardId(0), 1, rows)], 100)
    await write_merged(merged, stores, describe_replayed, clock=CLOCK, deadline_ms=None)
    return stores, ids


async def end(stores: Stores, one: WorkflowId) -> None:
    """The store knows that it has ended, the index does not yet."""
    await stores.executions.write(
        [(row, 1 << 50) for row in rows_of(one, 1_000, WorkflowStatus.COMPLETED)]
    )


async def nothing() -> None:
    """Nothing waits to be written."""


async def test_what_has_changed_is_left_out_and_the_page_is_filled() -> None:
    stores, ids = await filled(12)
    search = Search(stores.search, stores.executions, nothing)
    await end(stores, ids[-2])
    await stores.executions.remove([(ids[-3], 1 << 50)])
    page = await search.workflows(Query(RUNNING), start=0, size=5)
    shown = [hit.summary.workflow_id for hit in page.hits]
    assert shown == [ids[-1], *ids[-4:-8:-1]]
    assert page.total == 10
    assert {hit.summary.status for hit in page.hits} == {"RUNNING"}


async def test_inputs_are_found_by_what_the_checkpoint_wrote() -> None:
    stores, ids = await filled(6)
    search = Search(stores.search, stores.executions, nothing)
    page = await search.workflows(
        Query(Comparison("input.customer", "=", ("c1",))), start=0, size=9
    )
    assert [hit.summary.workflow_id for hit in page.hits] == ids[5::-2]
    assert page.hits[0].summary.inputs == {"customer": "c1"}


async def test_searches_that_come_together_share_what_is_written_for_them() -> None:
    stores, _ = await filled(1)
    began: list[int] = []
    go_on = asyncio.Event()

    async def catch_up() -> None:
        began.append(len(began))
        await go_on.wait()

    search = Search(stores.search, stores.executions, catch_up)
    first = asyncio.create_task(search.catch_up())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert began == [0]
    # These came after it had begun: it may not have everything they rely on.
    later = [asyncio.create_task(search.catch_up()) for _ in range(5)]
    await asyncio.sleep(0)
    later[0].cancel()
    go_on.set()
    await asyncio.gather(first, *later[1:])
    assert began == [0, 1]
    await search.catch_up()
    assert began == [0, 1, 2]


async def test_a_fault_is_told_to_all_and_the_next_search_begins_anew() -> None:
    stores, _ = await filled(1)
    faults = [RuntimeError("away")]

    async def catch_up() -> None:
        if faults:
            raise faults.pop()

    search = Search(stores.search, stores.executions, catch_up)
    told = await asyncio.gather(*(search.catch_up() for _ in range(3)), return_exceptions=True)
    assert [str(one) for one in told] == ["away"] * 3
    await search.catch_up()


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        (Comparison("workflowType", "=", ("a",)), Comparison("workflowType", "=", ("a",))),
        (Comparison("status", "=", ("FAILED",)), EVERYTHING),
        (
            Comparison("status", "IN", ("SCHEDULED", "IN_PROGRESS")),
            Comparison("status", "IN", ("PAUSED", "RUNNING")),
        ),
        (Comparison("status", "IN", ("SCHEDULED",), True), EVERYTHING),
        (Comparison("endTime", ">", (5,)), Comparison("updateTime", ">=", (5,))),
        (Comparison("scheduledTime", "<", (5,)), Comparison("startTime", "<=", (5,))),
        (
            Comparison("taskId", "=", ("01a1ffd3-4d47-8f70-96b6-283b8b600001",)),
            Comparison("workflowId", "IN", ("01a1ffd3-4d47-8f70-96b6-283b8b600000",)),
        ),
        (
            AnyOf((Comparison("taskType", "=", ("a",)), Comparison("workflowId", "=", ("x",)))),
            EVERYTHING,
        ),
        (AllOf((Comparison("taskType", "=", ("a",)),)), AllOf((EVERYTHING,))),
    ],
)
async def test_which_workflows_can_have_such_tasks(asked: AllOf, needed: AllOf) -> None:
    assert workflows_with(asked) == needed
