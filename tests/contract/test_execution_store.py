"""The contract of ExecutionStore."""

import pytest

from cluster.ids import WorkflowId
from cluster.store.ports import Revised, Row, Stores, revision_of
from tests.support.rows import revised, workflow_id

pytestmark = pytest.mark.asyncio


def row(owner: WorkflowId, number: int, data: bytes, *, epoch: int = 1, at: int = 1) -> Revised:
    return revised(Row(owner, number, data), epoch=epoch, position=at)


async def test_rows_come_back_by_number(stores: Stores) -> None:
    one, other = workflow_id(), workflow_id()
    await stores.executions.write(
        [row(one, 7, b"task"), row(other, 0, b"other"), row(one, 0, b"header"), row(one, 1, b"in")]
    )
    assert list(await stores.executions.read(one)) == [
        Row(one, 0, b"header"),
        Row(one, 1, b"in"),
        Row(one, 7, b"task"),
    ]
    assert list(await stores.executions.read(workflow_id())) == []


async def test_a_record_needs_no_header(stores: Stores) -> None:
    """Idempotency keys are rows without one. A header that comes later changes nothing in them."""
    one = workflow_id()
    await stores.executions.write([row(one, 5, b"record")])
    assert list(await stores.executions.read(one)) == [Row(one, 5, b"record")]
    assert dict(await stores.executions.headers([one])) == {}


async def test_a_row_yields_to_a_higher_revision_only(stores: Stores) -> None:
    one = workflow_id()
    for epoch, at, data in (
        (2, 5, b"first"),
        (2, 5, b"first"),
        (2, 4, b"a lower position"),
        (1, 900, b"a late write of an earlier epoch"),
    ):
        await stores.executions.write([row(one, 0, data, epoch=epoch, at=at)])
        assert list(await stores.executions.read(one)) == [Row(one, 0, b"first")]
    await stores.executions.write([row(one, 0, b"next", epoch=2, at=6)])
    await stores.executions.write([row(one, 0, b"last", epoch=3, at=1)])
    assert list(await stores.executions.read(one)) == [Row(one, 0, b"last")]


async def test_a_deleted_row_stays_deleted(stores: Stores) -> None:
    one = workflow_id()
    await stores.executions.write([row(one, 0, b"header"), row(one, 5, b"task")])
    await stores.executions.write([row(one, 5, b"", at=3)])
    await stores.executions.write([row(one, 5, b"late", at=2)])
    assert list(await stores.executions.read(one)) == [Row(one, 0, b"header")]
    await stores.executions.write([row(one, 5, b"again", at=4)])
    assert list(await stores.executions.read(one)) == [
        Row(one, 0, b"header"),
        Row(one, 5, b"again"),
    ]


async def test_many_rows_in_one_write(stores: Stores) -> None:
    """More than any statement takes at once, with remainders of every batch size."""
    ids = [workflow_id() for _ in range(7)]
    rows = [row(one, number, b"%d" % number) for one in ids for number in range(131)]
    await stores.executions.write(rows)
    await stores.executions.write([row(ids[0], 3, b"changed", at=2), *rows[4:]])
    for one in ids:
        expected = [Row(one, number, b"%d" % number) for number in range(131)]
        if one == ids[0]:
            expected[3] = Row(one, 3, b"changed")
        assert list(await stores.executions.read(one)) == expected
    await stores.executions.write([])


async def test_large_and_binary_data(stores: Stores) -> None:
    one = workflow_id()
    data = bytes(range(256)) * 4096
    await stores.executions.write([row(one, 0, b"\x00"), row(one, 1, data)])
    assert [found.data for found in await stores.executions.read(one)] == [b"\x00", data]


async def test_headers_of_many(stores: Stores) -> None:
    ids = [workflow_id() for _ in range(300)]
    await stores.executions.write([row(one, 0, one.encode()) for one in ids])
    await stores.executions.write([row(ids[0], 1, b"input"), row(ids[1], 0, b"", at=2)])
    found = await stores.executions.headers([workflow_id(), *ids])
    assert dict(found) == {one: one.encode() for one in ids if one != ids[1]}
    assert dict(await stores.executions.headers([])) == {}


async def test_a_removed_workflow_is_gone(stores: Stores) -> None:
    one, other = workflow_id(), workflow_id()
    for owner in (one, other):
        await stores.executions.write([row(owner, 0, b"header"), row(owner, 5, b"task")])
    await stores.executions.remove([(one, revision_of(1, 2))])
    assert list(await stores.executions.read(one)) == []
    assert dict(await stores.executions.headers([one])) == {}
    assert len(await stores.executions.read(other)) == 2
    # What a stale owner writes late stays unseen, and so does the same removal repeated.
    await stores.executions.write([row(one, 0, b"late", at=2), row(one, 5, b"late", at=2)])
    await stores.executions.remove([(one, revision_of(1, 2))])
    assert list(await stores.executions.read(one)) == []
    assert dict(await stores.executions.headers([one])) == {}


async def test_a_late_removal_spares_later_rows(stores: Stores) -> None:
    one = workflow_id()
    await stores.executions.write([row(one, 0, b"header", epoch=2), row(one, 1, b"input")])
    await stores.executions.remove([(one, revision_of(1, 99))])
    assert list(await stores.executions.read(one)) == [Row(one, 0, b"header")]


async def test_bundles_are_rows_to_a_reader(stores: Stores) -> None:
    """Written together in two parts, then row by row, with late writes of an earlier epoch."""
    one, other = workflow_id(), workflow_id()
    begun = [row(one, 0, b"began"), row(one, 1, b"input"), row(one, 16, b"scheduled")]
    await stores.executions.write([*begun, row(other, 0, b"other")], {one: 0, other: 0})
    assert [found.data for found in await stores.executions.read(one)] == [
        b"began",
        b"input",
        b"scheduled",
    ]
    # Cut short and repeated with more in it.
    await stores.executions.write([*begun, row(one, 20, b"second", at=2)], {one: 0})
    ended = [row(one, 0, b"ended", at=4), row(one, 16, b"completed", at=3), row(one, 1, b"", at=3)]
    await stores.executions.write(ended, {one: 1})
    assert dict(await stores.executions.headers([one, other])) == {one: b"ended", other: b"other"}
    await stores.executions.write(
        [row(one, 0, b"restarted", at=6), row(one, 16, b"late", at=2), row(one, 20, b"two", at=5)]
    )
    assert list(await stores.executions.read(one)) == [
        Row(one, 0, b"restarted"),
        Row(one, 16, b"completed"),
        Row(one, 20, b"two"),
    ]
    assert dict(await stores.executions.headers([one])) == {one: b"restarted"}
    heads = await stores.executions.heads([one, other])
    assert {owner: list(rows) for owner, rows in heads.items()} == {
        one: [Row(one, 0, b"restarted")],
        other: [Row(other, 0, b"other")],
    }


async def test_a_removal_takes_bundles_along(stores: Stores) -> None:
    one = workflow_id()
    rows = [row(one, 0, b"header"), row(one, 16, b"task")]
    await stores.executions.write(rows, {one: 0})
    await stores.executions.remove([(one, revision_of(1, 2))])
    assert list(await stores.executions.read(one)) == []
    # The bundle of a process that was paused, after the removal.
    await stores.executions.write(rows, {one: 0})
    assert list(await stores.executions.read(one)) == []
    assert dict(await stores.executions.headers([one])) == {}
