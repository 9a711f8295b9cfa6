"""The contract of RecordStore."""

import pytest

from cluster.ids import NUMBER_MAX, task_id
from cluster.store.ports import TASK_LOG_LINES_MAX, PollData, RecordStore, Stores, TaskLog
from tests.support.rows import workflow_id

pytestmark = pytest.mark.asyncio


@pytest.fixture
def records(stores: Stores) -> RecordStore:
    return stores.records


async def test_task_logs_come_back_in_order(records: RecordStore) -> None:
    task, other = task_id(workflow_id(), 1), task_id(workflow_id(), 1)
    lines = [TaskLog(task, created_ms, f"line {created_ms}") for created_ms in (5, 3, 3)]
    await records.append_task_logs([*lines[:2], TaskLog(other, 1, "other")])
    await records.append_task_logs(lines[2:])
    assert list(await records.task_logs(task)) == lines
    assert list(await records.task_logs(task_id(workflow_id(), 1))) == []


async def test_a_task_keeps_its_last_lines(records: RecordStore) -> None:
    task = task_id(workflow_id(), 1)
    lines = [TaskLog(task, number, str(number)) for number in range(TASK_LOG_LINES_MAX + 3)]
    await records.append_task_logs(lines[:500])
    await records.append_task_logs(lines[500:])
    assert list(await records.task_logs(task)) == lines[3:]


async def test_task_logs_of_a_workflow_are_removed(records: RecordStore) -> None:
    owner, later = workflow_id(), workflow_id()
    mine = [task_id(owner, 1), task_id(owner, NUMBER_MAX)]
    other = task_id(later, 1)
    await records.append_task_logs([TaskLog(task, 1, "line") for task in (*mine, other)])
    await records.remove_task_logs(owner)
    assert [len(await records.task_logs(task)) for task in (*mine, other)] == [0, 0, 1]


async def test_poll_data_keeps_the_last_poll(records: RecordStore) -> None:
    await records.put_poll_data(
        [PollData("mail", "", "w1", 10), PollData("mail", "blue", "w2", 10)]
    )
    await records.put_poll_data([PollData("mail", "", "w3", 9), PollData("mail", "blue", "w4", 11)])
    await records.put_poll_data([PollData("fax", "", "w5", 1)])
    mail = [PollData("mail", "", "w1", 10), PollData("mail", "blue", "w4", 11)]
    assert list(await records.poll_data("mail")) == mail
    assert list(await records.poll_data(None)) == [PollData("fax", "", "w5", 1), *mail]
    assert list(await records.poll_data("absent")) == []
    assert list(await records.polls_with_domain()) == [PollData("mail", "blue", "w4", 11)]


async def test_values_by_key(records: RecordStore) -> None:
    await records.put("schedule", {"a": b"1", "b": b"2"})
    await records.put("handler", {"a": b"3"})
    await records.put("schedule", {"a": b"4", "b": None, "absent": None})
    assert await records.get("schedule", "a") == b"4"
    assert await records.get("schedule", "b") is None
    assert await records.get("handler", "a") == b"3"


async def test_pages_of_keys_with_a_prefix(records: RecordStore) -> None:
    keys = ["a", "b", "b%", "b_", "ba", "c", "é"]
    await records.put("schedule", {key: key.encode() for key in reversed(keys)})
    await records.put("handler", {"b": b"other"})

    async def page(prefix: str, after: str | None = None, limit: int = 10) -> list[str]:
        found = await records.page("schedule", prefix=prefix, after=after, limit=limit)
        assert all(value == key.encode() for key, value in found)
        return [key for key, _ in found]

    assert await page("") == keys
    assert await page("b") == ["b", "b%", "b_", "ba"]
    assert await page("b", limit=2) == ["b", "b%"]
    assert await page("b", after="b%") == ["b_", "ba"]
    assert await page("b", after="a") == ["b", "b%", "b_", "ba"]
    assert await page("b", after="c") == []
    assert await page("", after="ba") == ["c", "é"]
