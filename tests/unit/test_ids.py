"""An id says when its workflow began and where it lives; whatever is no id of ours is not found."""

import uuid
from random import Random as PseudoRandom

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import NotFound
from cluster.ids import (
    NUMBER_MAX,
    derived_workflow_id,
    from_bytes,
    idempotency_id,
    new_workflow_id,
    number_of,
    parse_task_id,
    parse_workflow_id,
    same_slot,
    shard_of,
    slot_of,
    slot_of_key,
    task_id,
    time_of,
    to_bytes,
    workflow_of,
)

# The first minutes of 1970 are those of schedules.
times = st.integers(1 << 20, (1 << 48) - 1)
slots = st.integers(0, (1 << 16) - 1)
numbers = st.integers(1, NUMBER_MAX)
origins = st.text(max_size=50)
shard_counts = st.integers(0, 16).map(lambda power: 1 << power)


class Bits:
    """The Random port, from a seed."""

    def __init__(self, seed: int) -> None:
        self.bits = PseudoRandom(seed).getrandbits


@given(at_ms=times, slot=slots, number=numbers, seed=st.integers())
def test_an_id_gives_back_what_it_was_made_of(
    at_ms: int, slot: int, number: int, seed: int
) -> None:
    workflow = new_workflow_id(at_ms=at_ms, slot=slot, random=Bits(seed))
    task = task_id(workflow, number)
    assert (time_of(workflow), slot_of(workflow), number_of(workflow)) == (at_ms, slot, 0)
    assert (time_of(task), slot_of(task), number_of(task)) == (at_ms, slot, number)
    assert workflow_of(task) == workflow
    assert workflow_of(workflow) == workflow
    assert same_slot(task, workflow)


@given(at_ms=times, slot=slots, number=numbers, seed=st.integers())
def test_an_id_is_a_uuid_of_version_8(at_ms: int, slot: int, number: int, seed: int) -> None:
    workflow = new_workflow_id(at_ms=at_ms, slot=slot, random=Bits(seed))
    for text in (workflow, task_id(workflow, number)):
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert parsed.version == 8
        assert parsed.variant == uuid.RFC_4122
        assert parsed.bytes == to_bytes(text)
        assert from_bytes(parsed.bytes) == text


@given(earlier=times, later=times, slot=slots, other=slots, number=numbers, seed=st.integers())
def test_ids_sort_by_time_as_text_and_as_bytes(
    earlier: int, later: int, slot: int, other: int, number: int, seed: int
) -> None:
    random = Bits(seed)
    one = new_workflow_id(at_ms=earlier, slot=slot, random=random)
    two = new_workflow_id(at_ms=later, slot=other, random=random)
    if earlier != later:
        assert (one < two) is (earlier < later)
        assert (task_id(one, number) < two) is (earlier < later)
    assert (one < two) is (to_bytes(one) < to_bytes(two))


@given(at_ms=times, slot=slots, seed=st.integers(), pair=st.tuples(numbers, numbers))
def test_tasks_stand_behind_their_workflow_in_the_order_of_their_numbers(
    at_ms: int, slot: int, seed: int, pair: tuple[int, int]
) -> None:
    workflow = new_workflow_id(at_ms=at_ms, slot=slot, random=Bits(seed))
    small, large = sorted(pair)
    assert workflow < task_id(workflow, small) <= task_id(workflow, large)
    assert (task_id(workflow, small) == task_id(workflow, large)) is (small == large)


@given(at_ms=times, slot=slots, number=numbers, seed=st.integers(), shard_count=shard_counts)
def test_twice_as_many_shards_keep_the_ids_and_cut_each_shard_in_two(
    at_ms: int, slot: int, number: int, seed: int, shard_count: int
) -> None:
    workflow = new_workflow_id(at_ms=at_ms, slot=slot, random=Bits(seed))
    shard = shard_of(workflow, shard_count=shard_count)
    assert 0 <= shard < shard_count
    assert shard_of(task_id(workflow, number), shard_count=shard_count) == shard
    if shard_count < 1 << 16:
        assert shard_of(workflow, shard_count=2 * shard_count) in (2 * shard, 2 * shard + 1)


@given(at_ms=times, slot=slots, origin=origins, other=origins)
def test_a_derived_id_is_the_same_each_time_and_another_for_another_origin(
    at_ms: int, slot: int, origin: str, other: str
) -> None:
    drawn = derived_workflow_id(at_ms=at_ms, slot=slot, origin=origin)
    assert drawn == derived_workflow_id(at_ms=at_ms, slot=slot, origin=origin)
    assert (time_of(drawn), slot_of(drawn), number_of(drawn)) == (at_ms, slot, 0)
    assert parse_workflow_id(drawn) == drawn
    again = derived_workflow_id(at_ms=at_ms, slot=slot, origin=other)
    assert (again == drawn) is (origin == other)


@given(name=origins, key=origins, shard_count=shard_counts)
def test_a_key_lives_where_the_start_it_guards_lives(name: str, key: str, shard_count: int) -> None:
    record = idempotency_id(name, key)
    assert record == idempotency_id(name, key)
    assert slot_of(record) == slot_of_key(name, key)
    start = new_workflow_id(at_ms=5, slot=slot_of_key(name, key), random=Bits(1))
    assert shard_of(start, shard_count=shard_count) == shard_of(record, shard_count=shard_count)


def test_a_name_and_a_key_are_not_run_together() -> None:
    assert idempotency_id("ab", "c") != idempotency_id("a", "bc")


@given(at_ms=times, slot=slots, number=numbers, seed=st.integers())
def test_upper_case_is_read_and_written_small(
    at_ms: int, slot: int, number: int, seed: int
) -> None:
    workflow = new_workflow_id(at_ms=at_ms, slot=slot, random=Bits(seed))
    task = task_id(workflow, number)
    assert parse_workflow_id(workflow.upper()) == workflow
    assert parse_task_id(task.upper()) == task


def test_a_task_is_no_workflow_and_a_workflow_no_task() -> None:
    workflow = new_workflow_id(at_ms=1, slot=2, random=Bits(3))
    with pytest.raises(NotFound):
        parse_task_id(workflow)
    with pytest.raises(NotFound):
        parse_workflow_id(task_id(workflow, 4))


GOOD = "01970000-0000-8000-8000-000000100000"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        GOOD[:-1],
        GOOD + "0",
        GOOD.replace("-8000-8", "-4000-8"),
        GOOD.replace("-8000-8", "-8000-c"),
        GOOD.replace("-", "0"),
        GOOD.replace("-", "_"),
        " " + GOOD[1:],
        GOOD[:35] + "\n",
        GOOD[:30] + "-" + GOOD[31:],
        GOOD[:30] + "g" + GOOD[31:],
        GOOD[:30] + "\N{FULLWIDTH DIGIT ONE}" + GOOD[31:],
        "{" + GOOD + "}",
        "urn:uuid:" + GOOD,
    ],
)
def test_garbage_is_not_found(text: str) -> None:
    assert parse_workflow_id(GOOD) == GOOD
    for parse in (parse_workflow_id, parse_task_id):
        with pytest.raises(NotFound):
            parse(text)


@given(text=st.one_of(st.text(), st.uuids(version=4).map(str)))
def test_any_other_text_is_not_found(text: str) -> None:
    for parse in (parse_workflow_id, parse_task_id):
        with pytest.raises(NotFound):
            parse(text)
