"""The contract of SearchIndex."""

import msgspec
import pytest

from cluster.ids import WorkflowId
from cluster.store.cassandra import search
from cluster.store.ports import Stores, Summary
from tests.support.rows import workflow_id

pytestmark = pytest.mark.asyncio


def summary(
    owner: WorkflowId,
    *,
    name: str = "orders",
    version: int = 1,
    status: str = "RUNNING",
    start_ms: int = 100,
    correlation_id: str | None = None,
) -> Summary:
    return Summary(
        workflow_id=owner,
        name=name,
        version=version,
        status=status,
        start_ms=start_ms,
        update_ms=start_ms,
        correlation_id=correlation_id,
    )


async def write(stores: Stores, *summaries: Summary, revision: int = 1) -> None:
    await stores.search.write([(one, revision) for one in summaries])


async def running(
    stores: Stores, *, version: int | None = None, start_ms: int = 0, end_ms: int = 1 << 50
) -> list[WorkflowId]:
    found = await stores.search.running(
        "orders", version=version, start_ms=start_ms, end_ms=end_ms, limit=100
    )
    return list(found)


async def found_by_definition(stores: Stores, **choice: object) -> list[Summary]:
    asked: dict[str, object] = {
        "version": None,
        "statuses": (),
        "start_ms": 0,
        "end_ms": 1 << 50,
        "after": None,
        "limit": 100,
    }
    found = await stores.search.by_definition("orders", **{**asked, **choice})  # type: ignore[arg-type]
    return list(found)


async def test_running_by_name_version_and_start(stores: Stores) -> None:
    ids = [workflow_id() for _ in range(6)]
    await write(
        stores,
        summary(ids[0], start_ms=300),
        summary(ids[1], start_ms=100, version=2),
        summary(ids[2], start_ms=200),
        summary(ids[3], name="payments"),
        summary(ids[4], status="PAUSED"),
        summary(ids[5], status="COMPLETED"),
    )
    assert await running(stores) == [ids[1], ids[2], ids[0]]
    assert await running(stores, version=1) == [ids[2], ids[0]]
    assert await running(stores, start_ms=200, end_ms=300) == [ids[2]]
    limited = await stores.search.running("orders", version=None, start_ms=0, end_ms=999, limit=1)
    assert list(limited) == [ids[1]]


async def test_correlated(stores: Stores) -> None:
    ids = [workflow_id() for _ in range(5)]
    await write(
        stores,
        summary(ids[0], correlation_id="c1"),
        summary(ids[1], correlation_id="c1", status="FAILED"),
        summary(ids[2], correlation_id="c2"),
        summary(ids[3], correlation_id="c1", name="payments"),
        summary(ids[4]),
    )
    search = stores.search
    found = await search.correlated("orders", "c1", include_closed=False, limit=100)
    assert list(found) == [ids[0]]
    found = await search.correlated("orders", "c1", include_closed=True, limit=100)
    assert list(found) == ids[:2]
    assert not await search.correlated("orders", "", include_closed=True, limit=100)


async def test_pages_by_definition(stores: Stores) -> None:
    ids = [workflow_id() for _ in range(6)]
    all_six = [
        summary(one, status=status, start_ms=number, version=1 + number % 2)
        for number, (one, status) in enumerate(
            zip(ids, ["RUNNING", "FAILED", "COMPLETED"] * 2, strict=True)
        )
    ]
    await write(stores, *all_six, summary(workflow_id(), name="payments"))
    assert await found_by_definition(stores) == all_six
    assert await found_by_definition(stores, limit=2) == all_six[:2]
    assert await found_by_definition(stores, after=ids[1], limit=2) == all_six[2:4]
    assert await found_by_definition(stores, version=2) == all_six[1::2]
    assert await found_by_definition(stores, start_ms=2, end_ms=4) == all_six[2:4]
    statuses = ["FAILED", "RUNNING"]
    assert await found_by_definition(stores, statuses=statuses) == [
        one for one in all_six if one.status in statuses
    ]


async def test_a_summary_yields_to_a_higher_revision_only(stores: Stores) -> None:
    one = workflow_id()
    await write(stores, summary(one), revision=5)
    await write(stores, summary(one), revision=5)
    await write(stores, summary(one, status="FAILED"), revision=4)
    assert await running(stores) == [one]
    ended = summary(one, status="FAILED", correlation_id="c9")
    await write(stores, ended, revision=6)
    assert await running(stores) == []
    assert await found_by_definition(stores) == [ended]
    await stores.search.remove([(one, 5)])
    assert await found_by_definition(stores) == [ended]
    await stores.search.remove([(one, 6)])
    assert await found_by_definition(stores) == []


async def test_every_field_comes_back(stores: Stores) -> None:
    one = Summary(
        workflow_id=workflow_id(),
        name="orders",
        version=3,
        status="FAILED",
        start_ms=1,
        update_ms=2,
        end_ms=3,
        correlation_id="c",
        parent_workflow_id=workflow_id(),
        priority=7,
        reason="it's \u2603",
        event="e",
        created_by="me",
        idempotency_key="k",
        failed_reference_task_names=("a", "b"),
        failed_task_names=("t",),
        inputs={"a": "1"},
    )
    unset = [
        field.name
        for field in msgspec.structs.fields(Summary)
        if field.default is not msgspec.NODEFAULT and getattr(one, field.name) == field.default
    ]
    assert not unset
    await write(stores, one)
    assert await found_by_definition(stores) == [one]


async def test_many_at_once(stores: Stores) -> None:
    ids = [workflow_id() for _ in range(300)]
    await write(stores, *(summary(one) for one in ids))
    await stores.search.remove([(one, 1) for one in ids[10:]])
    assert [one.workflow_id for one in await found_by_definition(stores)] == ids[:10]


async def test_a_page_of_many(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than Cassandra reads in one piece, so that it walks through them in order."""
    monkeypatch.setattr(search, "_FEW", 5)
    monkeypatch.setattr(search, "_WALK_PAGE_ROWS", 7)
    all_of_them = [
        summary(workflow_id(), status="RUNNING" if number % 3 else "FAILED")
        for number in range(400)
    ]
    await write(stores, *all_of_them, *(summary(workflow_id(), name="other") for _ in range(50)))
    running = [one for one in all_of_them if one.status == "RUNNING"]
    found: list[Summary] = []
    while page := await found_by_definition(
        stores, statuses=["RUNNING"], after=found[-1].workflow_id if found else None, limit=37
    ):
        found += page
    assert found == running
    assert await found_by_definition(stores, limit=1_000) == all_of_them
