"""All rows of a workflow that one checkpoint writes, kept as one row of Cassandra.

A row costs Cassandra and the driver more than its bytes. What begins and ends within a few
checkpoints is written in one row each time instead of ten. The bundles of a workflow stand before
its rows: bundle n has the number -1 - n. A row counts by its own revision, wherever it stands, so
rows that are written by themselves later, or come late, go with bundles in any order.
"""

from collections.abc import Iterable, Sequence

import msgspec

from cluster.store.ports import Revised

_BYTES_MAX = 64 * 1024
"""Larger rows are better off alone: the bytes then cost more than the rows."""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[tuple[int, int, bytes]])


def number_of_bundle(place: int) -> int:
    """The row number of bundle `place`."""
    return -1 - place


def bundled(rows: Sequence[Revised]) -> bytes | None:
    """The bytes of a bundle; None: these rows are not worth one."""
    if len(rows) < 2 or sum(len(row.data) for row, _ in rows) > _BYTES_MAX:
        return None
    return _ENCODER.encode([(row.number, revision, row.data) for row, revision in rows])


def newest(found: Iterable[tuple[int, bytes, int]]) -> dict[int, bytes]:
    """Of each number the row with the highest revision, deleted ones too; in order of numbers.

    `found`: (number, data, revision) of rows and bundles.
    """
    rows: dict[int, tuple[int, bytes]] = {}
    for number, data, revision in found:
        inside = [(number, revision, data)] if number >= 0 else _DECODER.decode(data)
        for its_number, its_revision, its_data in inside:
            held = rows.get(its_number)
            if held is None or its_revision > held[0]:
                rows[its_number] = (its_revision, its_data)
    return {number: rows[number][1] for number in sorted(rows)}
