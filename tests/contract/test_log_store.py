"""The contract of LogStore."""

import asyncio

import pytest
import pytest_asyncio

from cluster.errors import Fenced
from cluster.store.ports import SEGMENT_POSITIONS, Fence, LogId, LogStore, Stores
from tests.support.rows import log_id

pytestmark = pytest.mark.asyncio

ALL = 1 << 30


@pytest.fixture
def logs(stores: Stores) -> LogStore:
    return stores.logs


@pytest_asyncio.fixture
async def log(logs: LogStore) -> LogId:
    name = log_id()
    await logs.create(name)
    return name


async def test_what_was_appended_is_read_in_order(logs: LogStore, log: LogId) -> None:
    for position in (1, 2, 3):
        await logs.append(log, position, b"entry %d" % position)
    found = await logs.read(log, after=0, upto=3, bytes_max=ALL)
    assert list(found) == [(1, b"entry 1"), (2, b"entry 2"), (3, b"entry 3")]
    assert list(await logs.read(log, after=1, upto=2, bytes_max=ALL)) == [(2, b"entry 2")]


async def test_a_read_stops_after_the_entry_that_reaches_the_limit(
    logs: LogStore, log: LogId
) -> None:
    for position in (1, 2, 3):
        await logs.append(log, position, b"0123456789")
    assert [p for p, _ in await logs.read(log, after=0, upto=3, bytes_max=11)] == [1, 2]
    assert [p for p, _ in await logs.read(log, after=0, upto=3, bytes_max=1)] == [1]


async def test_entries_of_logs_do_not_mix(logs: LogStore, log: LogId) -> None:
    other = log_id()
    await logs.create(other)
    await logs.append(log, 1, b"mine")
    await logs.append(other, 1, b"yours")
    await logs.append(other, 2, b"yours")
    assert list(await logs.read(log, after=0, upto=9, bytes_max=ALL)) == [(1, b"mine")]
    assert (await logs.seal(log)).valid_to == 1
    await logs.append(other, 3, b"yours")
    await logs.delete(log)
    assert [p for p, _ in await logs.read(other, after=0, upto=9, bytes_max=ALL)] == [1, 2, 3]


async def test_an_append_may_be_repeated_with_the_same_bytes_only(
    logs: LogStore, log: LogId
) -> None:
    await logs.append(log, 1, b"entry")
    await logs.append(log, 1, b"entry")
    with pytest.raises(Fenced):
        await logs.append(log, 1, b"other")
    assert list(await logs.read(log, after=0, upto=9, bytes_max=ALL)) == [(1, b"entry")]


async def test_a_sealed_log_takes_nothing_more(logs: LogStore, log: LogId) -> None:
    await logs.append(log, 1, b"entry")
    assert await logs.fence(log) == Fence(open=True, first_segment=0, valid_to=None)
    sealed = Fence(open=False, first_segment=0, valid_to=1)
    assert await logs.seal(log) == sealed
    assert await logs.fence(log) == sealed
    for position, entry in ((2, b"late"), (1, b"entry")):
        with pytest.raises(Fenced):
            await logs.append(log, position, entry)
    await logs.create(log)
    with pytest.raises(Fenced):
        await logs.append(log, 2, b"late")
    assert await logs.seal(log) == sealed


async def test_a_seal_ends_at_the_first_gap(logs: LogStore, log: LogId) -> None:
    for position in (1, 2, 4):
        await logs.append(log, position, b"entry")
    assert (await logs.seal(log)).valid_to == 2


async def test_the_seal_of_an_empty_log_is_valid_to_nothing(logs: LogStore, log: LogId) -> None:
    assert (await logs.seal(log)).valid_to == 0


async def test_an_absent_log_is_sealed_and_empty(logs: LogStore) -> None:
    absent = log_id()
    with pytest.raises(Fenced):
        await logs.append(absent, 1, b"entry")
    with pytest.raises(Fenced):
        await logs.advance_first_segment(absent, 1)
    assert await logs.fence(absent) is None
    assert await logs.seal(absent) == Fence(open=False, first_segment=0, valid_to=0)
    assert await logs.fence(absent) is None
    assert list(await logs.read(absent, after=0, upto=9, bytes_max=ALL)) == []
    await logs.delete(absent)


async def test_an_append_that_returned_precedes_every_seal(logs: LogStore) -> None:
    """A writer and three sealers race: what was acknowledged is within `valid_to`."""

    async def write(log: LogId, count: int, is_under_way: asyncio.Event) -> int:
        position = 0
        try:
            while True:
                if position == count:
                    is_under_way.set()
                await logs.append(log, position + 1, b"entry %d" % position)
                position += 1
                await asyncio.sleep(0)
        except Fenced:
            return position

    for count in range(12):
        log, is_under_way = log_id(), asyncio.Event()
        await logs.create(log)
        writer = asyncio.create_task(write(log, count, is_under_way))
        await is_under_way.wait()
        fences = await asyncio.gather(*(logs.seal(log) for _ in range(3)))
        acknowledged = await writer
        valid_to = fences[0].valid_to
        assert all(fence.valid_to == valid_to for fence in fences)
        assert valid_to is not None
        assert valid_to >= acknowledged >= count
        found = await logs.read(log, after=0, upto=valid_to, bytes_max=ALL)
        assert [p for p, _ in found] == list(range(1, valid_to + 1))


async def test_truncation_drops_whole_segments(logs: LogStore, log: LogId) -> None:
    last = 2 * SEGMENT_POSITIONS + 3
    for position in range(1, last + 1):
        await logs.append(log, position, b"entry")
    await logs.advance_first_segment(log, 2)
    await logs.advance_first_segment(log, 1)
    assert await logs.fence(log) == Fence(open=True, first_segment=2, valid_to=None)
    found = await logs.read(log, after=0, upto=last, bytes_max=ALL)
    assert [p for p, _ in found] == list(range(2 * SEGMENT_POSITIONS, last + 1))
    assert (await logs.seal(log)).valid_to == last


async def test_a_log_truncated_to_its_end_is_sealed_there(logs: LogStore, log: LogId) -> None:
    for position in range(1, SEGMENT_POSITIONS):
        await logs.append(log, position, b"entry")
    await logs.advance_first_segment(log, 1)
    assert await logs.seal(log) == Fence(
        open=False, first_segment=1, valid_to=SEGMENT_POSITIONS - 1
    )


async def test_a_sealed_log_is_not_truncated(logs: LogStore, log: LogId) -> None:
    for position in range(1, SEGMENT_POSITIONS + 2):
        await logs.append(log, position, b"entry")
    await logs.seal(log)
    with pytest.raises(Fenced):
        await logs.advance_first_segment(log, 1)
    found = await logs.read(log, after=0, upto=ALL, bytes_max=ALL)
    assert len(found) == SEGMENT_POSITIONS + 1
    assert await logs.seal(log) == Fence(
        open=False, first_segment=0, valid_to=SEGMENT_POSITIONS + 1
    )


async def test_large_entries_are_truncated_too(logs: LogStore, log: LogId) -> None:
    for position in range(1, SEGMENT_POSITIONS + 1):
        await logs.append(log, position, b"x" * 20_000)
    await logs.advance_first_segment(log, 1)
    found = await logs.read(log, after=0, upto=ALL, bytes_max=ALL)
    assert [p for p, _ in found] == [SEGMENT_POSITIONS]


async def test_only_a_sealed_log_is_deleted(logs: LogStore, log: LogId) -> None:
    await logs.append(log, 1, b"entry")
    await logs.delete(log)
    assert log in await logs.logs()
    assert list(await logs.read(log, after=0, upto=9, bytes_max=ALL)) == [(1, b"entry")]
    await logs.append(log, 2, b"entry")
    await logs.seal(log)
    await logs.delete(log)
    await logs.delete(log)
    assert log not in await logs.logs()
    with pytest.raises(Fenced):
        await logs.append(log, 3, b"late")
    assert list(await logs.read(log, after=0, upto=9, bytes_max=ALL)) == []
