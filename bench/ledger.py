"""What the client of a long run knows for sure: one append-only file, fsynced before it goes on."""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

_HEAD = struct.Struct("<III")
"""Kind of a frame, bytes behind this head, their CRC."""
_STARTED, _REPORTED = 1, 2
_ID_BYTES = 16

_IS_STARTED, _HAS_ENDED = 1, 2
"""Bits of a state. A result may be known before its start: the answer to that is on its way."""


class Ledger:
    """Which workflows, numbered from 0, the server has acknowledged, and whose results.

    In memory a workflow is its id and a state, 17 bytes. Opened again it knows all that was
    acknowledged to callers of `started` and `reported`; a frame cut off by a crash is dropped.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """`read_only` looks at one that somebody else writes."""
        self._ids = bytearray()
        self._states = bytearray()
        self.count = self.done = 0
        """Acknowledged starts and acknowledged results."""
        self.doubled: list[tuple[int, str]] = []
        """Starts that were answered with an id other than the first: two for one key."""
        self._waiting: list[bytes] = []
        self._group, self._written = 1, 0
        self._one_at_a_time = asyncio.Lock()
        self._file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, 0o644)
        end = self._read()
        if not read_only:
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)

    def close(self) -> None:
        os.close(self._file)

    @property
    def bytes_per_workflow(self) -> int:
        return _ID_BYTES + 1

    def __len__(self) -> int:
        """One above the highest number that was acknowledged."""
        return len(self._states)

    def is_started(self, number: int) -> bool:
        return number < len(self._states) and bool(self._states[number] & _IS_STARTED)

    def has_ended(self, number: int) -> bool:
        return number < len(self._states) and bool(self._states[number] & _HAS_ENDED)

    def id_of(self, number: int) -> str:
        place = number * _ID_BYTES
        return str(UUID(bytes=bytes(self._ids[place : place + _ID_BYTES])))

    def unstarted(self, upto: int) -> Iterator[int]:
        """Numbers below `upto` without an acknowledged start, as the walk comes to them."""
        return (number for number in range(upto) if not self.is_started(number))

    def open(self) -> Iterator[int]:
        """Numbers with a start and without a result, as the walk comes to them."""
        number = self._states.find(_IS_STARTED)
        while number >= 0:
            yield number
            number = self._states.find(_IS_STARTED, number + 1)

    async def started(self, starts: Sequence[tuple[int, str]]) -> None:
        """These numbers have these ids; durable when it returns."""
        payload = b"".join(struct.pack("<I", number) + UUID(one).bytes for number, one in starts)
        await self._keep(_STARTED, payload)
        self._take_starts(payload)

    async def reported(self, numbers: Sequence[int]) -> None:
        """The results of these were acknowledged; durable when it returns."""
        payload = array("I", numbers).tobytes()
        await self._keep(_REPORTED, payload)
        self._take_results(payload)

    async def _keep(self, kind: int, payload: bytes) -> None:
        self._waiting.append(_HEAD.pack(kind, len(payload), zlib.crc32(payload)) + payload)
        mine = self._group
        async with self._one_at_a_time:
            if self._written >= mine:
                return  # It went along with somebody else's.
            frames, self._waiting = self._waiting, []
            self._group += 1
            await asyncio.to_thread(self._append, b"".join(frames))
            self._written = mine

    def _append(self, frames: bytes) -> None:
        left = memoryview(frames)
        while left:
            left = left[os.write(self._file, left) :]
        os.fsync(self._file)

    def _read(self) -> int:
        """Take all frames that are whole; returns where they end."""
        end = 0
        while len(head := os.read(self._file, _HEAD.size)) == _HEAD.size:
            kind, size, crc = _HEAD.unpack(head)
            payload = os.read(self._file, size)
            if len(payload) < size or zlib.crc32(payload) != crc:
                break
            if kind == _STARTED:
                self._take_starts(payload)
            else:
                self._take_results(payload)
            end += _HEAD.size + size
        return end

    def _take_starts(self, payload: bytes) -> None:
        for place in range(0, len(payload), 4 + _ID_BYTES):
            (number,) = struct.unpack_from("<I", payload, place)
            raw = payload[place + 4 : place + 4 + _ID_BYTES]
            self._grow(number + 1)
            held = number * _ID_BYTES
            if not self._states[number] & _IS_STARTED:
                self._states[number] |= _IS_STARTED
                self._ids[held : held + _ID_BYTES] = raw
                self.count += 1
            elif self._ids[held : held + _ID_BYTES] != raw:
                self.doubled.append((number, str(UUID(bytes=raw))))

    def _take_results(self, payload: bytes) -> None:
        numbers = array("I")
        numbers.frombytes(payload)
        for number in numbers:
            self._grow(number + 1)
            if not self._states[number] & _HAS_ENDED:
                self._states[number] |= _HAS_ENDED
                self.done += 1

    def _grow(self, length: int) -> None:
        if length > len(self._states):
            more = length - len(self._states)
            self._states.extend(bytes(more))
            self._ids.extend(bytes(more * _ID_BYTES))
