"""The ledger of bench/million.py: what it says it knows, it knows after a crash."""

import asyncio
from pathlib import Path

import pytest

from bench.ledger import Ledger

pytestmark = pytest.mark.asyncio

IDS = [f"01a1fe72-f05c-8241-9d31-6a754b5{number:05x}" for number in range(100)]


async def test_it_is_read_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    await ledger.started([(number, IDS[number]) for number in range(0, 100, 2)])
    await ledger.reported([4, 8])
    ledger.close()
    again = Ledger(tmp_path / "ledger")
    assert (again.count, again.done, len(again)) == (50, 2, 99)
    assert [again.id_of(number) for number in (0, 98)] == [IDS[0], IDS[98]]
    assert list(again.unstarted(7)) == [1, 3, 5]
    assert list(again.open())[:4] == [0, 2, 6, 10]
    assert again.has_ended(8)
    assert not again.has_ended(6)
    assert not again.is_started(500)
    assert not again.doubled


async def test_what_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    await ledger.started([(0, IDS[0])])
    whole = path.stat().st_size
    await ledger.started([(1, IDS[1])])
    ledger.close()
    for size in range(whole, 2 * whole):
        with path.open("rb+") as file:
            file.truncate(size)
        again = Ledger(path)
        assert again.count == 1
        assert path.stat().st_size == whole
        await again.started([(1, IDS[1])])
        assert again.count == 2
        again.close()


async def test_a_broken_frame_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    await ledger.started([(0, IDS[0])])
    ledger.close()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert Ledger(path).count == 0


async def test_a_result_may_be_known_before_its_start(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    await ledger.reported([2])
    assert list(ledger.unstarted(3)) == [0, 1, 2]
    assert list(ledger.open()) == []
    await ledger.started([(2, IDS[2])])
    assert (ledger.count, ledger.done) == (1, 1)
    assert not ledger.doubled


async def test_a_second_id_is_kept_as_a_fault(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    await ledger.started([(0, IDS[0])])
    await ledger.started([(0, IDS[0])])
    assert not ledger.doubled
    await ledger.started([(0, IDS[1])])
    assert ledger.doubled == [(0, IDS[1])]
    assert ledger.id_of(0) == IDS[0]
    assert ledger.count == 1


async def test_many_at_once_share_few_writes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    writes = 0
    append = ledger._append

    def counted(frames: bytes) -> None:
        nonlocal writes
        writes += 1
        append(frames)

    ledger._append = counted  # type: ignore[method-assign]
    await asyncio.gather(*(ledger.started([(number, IDS[number])]) for number in range(100)))
    assert writes <= 2
    assert Ledger(tmp_path / "ledger").count == 100


async def test_a_reader_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    await ledger.started([(0, IDS[0])])
    with path.open("ab") as file:
        file.write(b"half a frame")
    assert Ledger(path, read_only=True).count == 1
    assert path.read_bytes().endswith(b"half a frame")
