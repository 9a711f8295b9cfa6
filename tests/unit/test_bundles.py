"""Rows of a workflow kept as one: what counts is each row's own revision, wherever it stands."""

from itertools import permutations

from cluster.store.cassandra.bundles import bundled, newest, number_of_bundle
from cluster.store.ports import Revised, Row
from tests.support.rows import revised, workflow_id

ONE = workflow_id()


def row(number: int, data: bytes, position: int) -> Revised:
    return revised(Row(ONE, number, data), epoch=1, position=position)


def stored(place: int, rows: list[Revised]) -> tuple[int, bytes, int]:
    data = bundled(rows)
    assert data is not None
    return number_of_bundle(place), data, max(revision for _, revision in rows)


def alone(number: int, data: bytes, position: int) -> tuple[int, bytes, int]:
    return number, data, row(number, data, position)[1]


def test_bundles_stand_before_the_header_and_never_meet() -> None:
    assert [number_of_bundle(place) for place in range(3)] == [-1, -2, -3]


def test_of_each_row_the_newest_counts_in_whatever_order_they_come() -> None:
    found = [
        stored(0, [row(0, b"started", 1), row(1, b"input", 1), row(16, b"scheduled", 1)]),
        stored(1, [row(0, b"ended", 7), row(16, b"completed", 5)]),
        alone(16, b"late", 3),
        alone(3, b"output", 9),
        alone(1, b"", 2),
    ]
    for order in permutations(found):
        assert newest(order) == {0: b"ended", 1: b"", 3: b"output", 16: b"completed"}
        assert list(newest(order)) == [0, 1, 3, 16]


def test_a_row_alone_and_large_ones_stay_rows() -> None:
    assert bundled([row(0, b"header", 1)]) is None
    assert bundled([row(0, b"header", 1), row(1, b"x" * 100_000, 1)]) is None
