"""When a cron expression comes in a time zone: wall-clock times to instants, across DST.

An expression that names hours goes by the wall clock: a time that a change of the clocks leaves out
comes at the moment of the change, and one that it repeats comes once, the first time. One that
names no hour goes by the time that passes: the hour that is left out is left out, and in the one
that is repeated it comes both times, so that what runs every minute does not rest for an hour.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cluster.engine.cron import parse_cron

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_CHANGE_MAX = timedelta(hours=3)
"""No clock is changed by more, but for moves over the date line, which nobody plans ahead."""

_LAST_MS = 250_000_000_000_000
"""The year 9892, from where the end of the calendar is near: nothing comes later."""


class BadZone(ValueError):
    """A zone that nobody knows."""


class ZonedCron:
    """An expression in a zone."""

    def __init__(self, expression: str, zone_id: str) -> None:
        """BadCron, BadZone."""
        self._cron = parse_cron(expression)
        self._zone = zone_of(zone_id)

    def next_after(self, after_ms: int) -> int | None:
        """The first instant after `after_ms`, in Unix ms, a whole second; None: none comes."""
        if after_ms >= _LAST_MS:
            return None
        after = _EPOCH + timedelta(seconds=after_ms // 1000)
        wall: datetime | None = after.astimezone(self._zone).replace(tzinfo=None, fold=0)
        again = self._second_time(after) if self._cron.is_hourly else None
        found: datetime | None = None
        while found is None and wall is not None:
            wall = self._cron.next_wall(wall)
            found = None if wall is None else self._instant(wall, after)
        if again is not None and (found is None or again < found):
            found = again
        return None if found is None else (found - _EPOCH) // _SECOND * 1000

    def _instant(self, wall: datetime, after: datetime) -> datetime | None:
        """When a wall-clock time comes; None: not at all, or not later than `after`."""
        zone = self._zone
        first = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
        second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
        is_left_out = first.astimezone(zone).replace(tzinfo=None, fold=0) != wall
        if is_left_out:
            # With the offset from before it falls behind the change, with the new one before it.
            found = None if self._cron.is_hourly else _change(zone, second, first)
        elif first <= after and self._cron.is_hourly:
            found = second
        else:
            found = first
        return found if found is not None and found > after else None

    def _second_time(self, after: datetime) -> datetime | None:
        """What comes when an hour that is about to end is repeated."""
        zone, later = self._zone, after + _CHANGE_MAX
        if _offset(zone, later) >= _offset(zone, after):
            return None
        change = _change(zone, after, later)
        offset = _offset(zone, change)
        begins = (change + offset).replace(tzinfo=None)
        wall = self._cron.next_wall(begins - _SECOND)
        if wall is None or wall > begins + _CHANGE_MAX:
            return None
        return wall.replace(tzinfo=UTC) - offset


@lru_cache(maxsize=4_096)
def zoned_cron(expression: str, zone_id: str) -> ZonedCron:
    """BadCron, BadZone."""
    return ZonedCron(expression, zone_id)


def latest(next_after: Callable[[int], int | None], first_ms: int, upto_ms: int) -> int:
    """The last instant up to `upto_ms` of those that `next_after` gives; `first_ms` is one."""
    low, high = first_ms - 1000, upto_ms
    # The last moment from which an instant up to `upto_ms` is still to come: by halves, for there
    # may be millions of them.
    while high - low > 1:
        middle = (low + high) // 2
        found = next_after(middle)
        if found is not None and found <= upto_ms:
            low = middle
        else:
            high = middle
    return next_after(low) or first_ms


_OFFSET = re.compile(r"(?:UTC|GMT|UT)?([+-])([0-9]{1,2})(?::?([0-9]{2}))?", re.ASCII)


@lru_cache(maxsize=1_024)
def zone_of(zone_id: str) -> tzinfo:
    """A zone by its name (Europe/Berlin), or a fixed offset (+02:00, UTC+2). BadZone."""
    if zone_id in ("UTC", "Z", "GMT"):
        return UTC
    found = _OFFSET.fullmatch(zone_id)
    if found is not None:
        offset = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        if offset > timedelta(hours=18):
            raise BadZone(f"'{zone_id}' is more than 18 hours from UTC")
        return timezone(-offset if found[1] == "-" else offset)
    try:
        return ZoneInfo(zone_id)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadZone(f"'{zone_id[:100]}' is no time zone that is known here") from None


def _offset(zone: tzinfo, at: datetime) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def _change(zone: tzinfo, before: datetime, behind: datetime) -> datetime:
    """The moment between the two at which the clocks are changed."""
    new = _offset(zone, behind)
    low, high = 0, (behind - before) // _SECOND
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, before + middle * _SECOND) == new:
            high = middle
        else:
            low = middle
    return before + high * _SECOND
