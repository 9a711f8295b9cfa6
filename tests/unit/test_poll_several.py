"""Long polls for several task types: one place in all their lines, fair, and nothing lost."""

import asyncio
import random

import pytest

from cluster.errors import InvalidRequest
from cluster.node import poll as poll_module
from cluster.node.poll import Polled
from tests.support.virtual_time import run_virtual
from tests.unit.test_poll import Desk, settle

TYPES = ("mail", "sms", "fax")


async def poll_any(
    desk: Desk,
    *task_types: str,
    count: int = 10,
    timeout_ms: int = 5000,
    gone: list[int] | None = None,
) -> list[str]:
    found: list[Polled] = await desk.desk.poll_any(
        task_types=task_types or TYPES,
        domain=None,
        worker_id="w",
        count=count,
        timeout_ms=timeout_ms,
        connected=lambda: not gone,
    )
    return [item.task_id for polled in found for item in polled.items]


def park(
    desk: Desk, *task_types: str, count: int = 10, gone: list[int] | None = None
) -> "asyncio.Task[list[str]]":
    return asyncio.ensure_future(poll_any(desk, *task_types, count=count, gone=gone))


def names(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


@pytest.mark.parametrize("delay_ms", [0, 3])
def test_what_waits_is_taken_at_once_from_all_types(delay_ms: int) -> None:
    async def main() -> None:
        desk = Desk(delay_ms=delay_ms)
        await desk.push("a", queue="mail")
        await desk.push("b", "c", queue="fax")
        assert sorted(await poll_any(desk)) == ["a", "b", "c"]
        assert await poll_any(desk, timeout_ms=0) == []

    run_virtual(main())


def test_types_share_what_a_poll_may_take_and_take_turns_in_being_first() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.push(*names("m", 50), queue="mail")
        await desk.push(*names("s", 50), queue="sms")
        await desk.push("f0", queue="fax")
        got = "".join(sorted(task[0] for task in await poll_any(desk, count=9)))
        # Fax has but one, so the others get what it leaves.
        assert got in ("fmmmmmsss", "fmmmmssss", "fmmmsssss")
        firsts = {(await poll_any(desk, count=1))[0][0] for _ in range(6)}
        assert firsts == {"m", "s"}

    run_virtual(main())


@pytest.mark.parametrize("delay_ms", [0, 3])
def test_a_parked_poll_is_woken_by_any_of_its_types(delay_ms: int) -> None:
    async def main() -> None:
        desk = Desk(delay_ms=delay_ms)
        for number, task_type in enumerate(TYPES):
            polling = park(desk)
            await asyncio.sleep(1)
            began_ms = desk.now()
            await desk.push(f"t{number}", queue=task_type)
            assert await polling == [f"t{number}"]
            assert desk.now() - began_ms <= 4 * delay_ms + 1
        assert desk.desk._lines == {}

    run_virtual(main())


def test_a_push_while_it_looks_elsewhere_is_not_missed() -> None:
    async def main() -> None:
        desk = Desk(delay_ms=5)
        for at_ms in range(40):
            polling = park(desk)
            await asyncio.sleep(at_ms / 1000)
            began_ms = desk.now()
            await desk.push(f"t{at_ms}", queue="mail")
            await polling
            assert polling.result() == [f"t{at_ms}"]
            assert desk.now() - began_ms < 100, "it waited for its deadline"

    run_virtual(main())


def test_time_up_is_answered_with_nothing_and_leaves_nothing() -> None:
    async def main() -> None:
        desk = Desk()
        began_ms = desk.now()
        assert await poll_any(desk, timeout_ms=2000) == []
        assert 2000 <= desk.now() - began_ms <= 2100
        assert desk.desk._lines == {}
        assert desk.metrics.polls_parked.of().value == 0

    run_virtual(main())


def test_a_client_that_goes_gets_nothing_and_the_turn_is_passed_on() -> None:
    async def main() -> None:
        desk = Desk()
        gone: list[int] = []
        leaving, staying = park(desk, gone=gone), park(desk, "mail")
        await settle()
        gone.append(1)
        await desk.push("a", queue="mail")
        assert await leaving == []
        assert await staying == ["a"]
        assert desk.desk._lines == {}

    run_virtual(main())


def test_a_poll_that_is_cancelled_loses_nothing() -> None:
    async def main() -> None:
        desk = Desk(delay_ms=2)
        for at_ms in range(25):
            polling = park(desk)
            await asyncio.sleep(0.02)
            await desk.push("a", queue="sms")
            await asyncio.sleep(at_ms / 2000)
            polling.cancel()
            done = (await asyncio.gather(polling, return_exceptions=True))[0]
            if isinstance(done, BaseException):
                assert await poll_any(desk, "sms") == ["a"]
            await desk.end("a", queue="sms")
            assert desk.desk._lines == {}

    run_virtual(main())


def test_single_polls_and_polls_of_several_types_share_everything() -> None:
    """Every task goes to one poll, at once, whoever is there."""

    async def main(seed: int) -> None:
        dice = random.Random(seed)
        desk = Desk(delay_ms=dice.choice([0, 1, 4]))
        got: list[str] = []
        end = asyncio.Event()

        async def several() -> None:
            while not end.is_set():
                some = dice.sample(TYPES, dice.randint(1, 3))
                got.extend(await poll_any(desk, *some, count=dice.randint(1, 4)))

        async def single() -> None:
            while not end.is_set():
                got.extend(await desk.poll(dice.choice(TYPES), count=dice.randint(1, 4)))

        async def always(task_type: str) -> None:
            while not end.is_set():
                got.extend(await desk.poll(task_type))

        working = [asyncio.ensure_future(several()) for _ in range(4)]
        working += [asyncio.ensure_future(single()) for _ in range(3)]
        # One of each type is always there, so no task has a reason to wait.
        working += [asyncio.ensure_future(always(task_type)) for task_type in TYPES]
        for number in range(150):
            await desk.push(f"t{number}", queue=dice.choice(TYPES))
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.01]))
        await asyncio.sleep(0.5)
        assert sorted(got) == sorted(f"t{number}" for number in range(150))
        end.set()
        desk.desk.close()
        await asyncio.gather(*working)

    for seed in range(20):
        run_virtual(main(seed))


def test_a_desk_that_closes_answers_with_nothing() -> None:
    async def main() -> None:
        desk = Desk()
        polling = park(desk)
        await settle()
        desk.desk.close()
        await desk.push("a", queue="mail")
        assert await polling == []
        assert await poll_any(desk) == []

    run_virtual(main())


def test_what_is_asked_for_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk()
        with pytest.raises(InvalidRequest):
            await poll_any(desk, timeout_ms=5001)
        monkeypatch.setattr(poll_module, "PARKED_MAX", 1)
        parked = park(desk)
        await settle()
        assert await poll_any(desk, "other") == []
        assert await poll_any(desk, count=0) == []
        parked.cancel()
        await asyncio.gather(parked, return_exceptions=True)
        assert desk.desk._lines == {}

    run_virtual(main())
