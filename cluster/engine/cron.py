"""Cron expressions with seconds: which wall-clock times they match, without zones.

Six fields: second, minute, hour, day of month, month, day of week (0 and 7 are Sunday, 1 is
Monday). Both day fields have to match. Lists, ranges, steps and English names; `?` for any day;
`L`, `L-3`, `LW` and `15W` as days of the month; `5L` (the last Friday) and `5#2` (the second one)
as days of the week; macros such as `@daily`.
"""

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Callable, Iterator, Mapping
from datetime import MAXYEAR, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

_YEARS_MAX = 50
"""A day that does not come within so many years is taken for one that never comes."""

_SECOND = timedelta(seconds=1)
_SATURDAY, _SUNDAY = 6, 7

_MACROS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_MONTHS = {
    name: number
    for number, name in enumerate("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split(), 1)
}
_WEEKDAYS = {name: number for number, name in enumerate("MON TUE WED THU FRI SAT SUN".split(), 1)}


class BadCron(ValueError):
    """An expression that cannot be read; the message says which field is wrong, and how."""


class _Field(NamedTuple):
    title: str
    lowest: int
    highest: int
    names: Mapping[str, int] = {}
    is_day: bool = False


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31, is_day=True),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS, is_day=True),
)

_Days = Callable[[int, int], int]
"""(number of days of a month, weekday of its first day) → the day that is meant, 0 = none."""


class _Set(NamedTuple):
    """What a field matches: plain values, and days that depend on the month."""

    values: frozenset[int]
    days: tuple[_Days, ...] = ()


class Cron:
    """An expression, read. Equal expressions share one: see `parse_cron`."""

    def __init__(self, expression: str) -> None:
        """BadCron."""
        text = _MACROS.get(expression.strip().lower(), expression)
        if text.startswith("@"):
            raise BadCron(f"'{_short(expression)}' is no macro; there are {', '.join(_MACROS)}")
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise BadCron(
                f"'{_short(expression)}' has {len(parts)} fields; it takes 6: second, minute,"
                " hour, day of month, month, day of week"
            )
        sets = [_read(part, field) for part, field in zip(parts, _FIELDS, strict=True)]
        self.expression = expression
        self._seconds, self._minutes, self._hours = (sorted(one.values) for one in sets[:3])
        self._month_days, months, self._weekdays = sets[3:]
        self._months = months.values
        self.is_hourly = len(self._hours) == 24
        """It names no hour: what it matches within an hour, it matches in every hour of a day."""

    def next_wall(self, wall: datetime) -> datetime | None:
        """The first matching time after `wall`; both are without zone. None: there is none."""
        start = wall.replace(microsecond=0) + _SECOND
        year, month, first_day = start.year, start.month, start.day
        for _ in range(12 * _YEARS_MAX + 1):
            if month in self._months:
                for day in self._days_of(year, month):
                    if day < first_day:
                        continue
                    at = (0, 0, 0)
                    if day == first_day and (year, month) == (start.year, start.month):
                        at = (start.hour, start.minute, start.second)
                    time = self._time_from(*at)
                    if time is not None:
                        return start.replace(year, month, day, *time)
            year, month, first_day = year + month // 12, month % 12 + 1, 1
            if year > MAXYEAR:
                break
        return None

    def _time_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """The first matching time of a day, at or after the given one."""
        first = (self._minutes[0], self._seconds[0])
        here = bisect_left(self._hours, hour)
        if here == len(self._hours):
            return None
        if self._hours[here] > hour:
            return self._hours[here], *first
        place = bisect_left(self._minutes, minute)
        if place < len(self._minutes) and self._minutes[place] == minute:
            found = bisect_left(self._seconds, second)
            if found < len(self._seconds):
                return hour, minute, self._seconds[found]
            place += 1
        if place < len(self._minutes):
            return hour, self._minutes[place], first[1]
        return (self._hours[here + 1], *first) if here + 1 < len(self._hours) else None

    def _days_of(self, year: int, month: int) -> Iterator[int]:
        """The matching days of a month, in order."""
        first, count = monthrange(year, month)
        first += 1
        in_month = set(self._month_days.values)
        in_month.update(day(count, first) for day in self._month_days.days)
        special = {day(count, first) for day in self._weekdays.days}
        for day in range(1, count + 1):
            if day in in_month:
                weekday = (first + day - 2) % 7 + 1
                if weekday in self._weekdays.values or day in special:
                    yield day


@lru_cache(maxsize=4_096)
def parse_cron(expression: str) -> Cron:
    """BadCron."""
    return Cron(expression)


def _read(part: str, field: _Field) -> _Set:
    values: set[int] = set()
    days: list[_Days] = []
    for item in part.upper().split(","):
        special = _special(item, field)
        if special is not None:
            days.append(special)
        else:
            values |= _values(item, field)
    if field.title == "day of week" and 0 in values:
        values = values - {0} | {_SUNDAY}
    return _Set(frozenset(values), tuple(days))


def _values(item: str, field: _Field) -> set[int]:
    """`*`, `?`, `5`, `1-5`, `*/10`, `5/10`, `1-30/10`, with names."""
    span, slash, step_text = item.partition("/")
    step = 1
    if slash:
        if not step_text.isascii() or not step_text.isdecimal() or not int(step_text[:9]):
            raise _bad(field, item, "a step is a number from 1")
        step = int(step_text[:9])
    if span == "*" or (span == "?" and field.is_day and not slash):
        low, high = field.lowest, field.highest
        if field.title == "day of week":
            low = 1
    elif "-" in span:
        low_text, _, high_text = span.partition("-")
        low, high = _number(low_text, item, field), _number(high_text, item, field)
        if low > high:
            if field.title != "day of week":
                raise _bad(field, item, "a range goes upwards")
            # FRI-MON, SUN-TUE: over the end of the week.
            return {(day - 1) % 7 + 1 for day in range(low, high + 7 + 1, step)}
    else:
        low = _number(span, item, field)
        high = field.highest if slash else low
    return set(range(low, high + 1, step))


def _number(text: str, item: str, field: _Field) -> int:
    named = field.names.get(text)
    if named is not None:
        return named
    if not text.isascii() or not text.isdecimal():
        raise _bad(field, item, f"'{_short(text)}' is no {field.title}")
    number = int(text[:9])
    if not field.lowest <= number <= field.highest:
        raise _bad(field, item, f"it goes from {field.lowest} to {field.highest}")
    return number


_LAST = re.compile(r"L(?:-([0-9]{1,2}))?", re.ASCII)
_NEAREST = re.compile(r"([0-9]{1,2})W", re.ASCII)
_WEEKDAY = re.compile(r"([0-7]|[A-Z]{3})(?:(L)|#([0-9]+))", re.ASCII)


def _special(item: str, field: _Field) -> _Days | None:
    """A day that depends on the month; None: it does not."""
    if field.title == "day of month":
        if item == "LW":
            return _last_working_day
        if found := _LAST.fullmatch(item):
            return _last_day(int(found[1] or 0))
        if found := _NEAREST.fullmatch(item):
            return _working_day_near(_number(found[1], item, field))
    elif field.title == "day of week" and (found := _WEEKDAY.fullmatch(item)):
        weekday = _number(found[1], item, field) or _SUNDAY
        if found[2]:
            return _last_weekday(weekday)
        number = int(found[3][:9])
        if not 1 <= number <= 5:
            raise _bad(field, item, "a month has at most five of a weekday")
        return _nth_weekday(weekday, number)
    return None


def _last_day(before: int) -> _Days:
    return lambda count, first: max(0, count - before)


def _last_working_day(count: int, first: int) -> int:
    weekday = (first + count - 2) % 7 + 1
    return count - max(0, weekday - 5)


def _working_day_near(day: int) -> _Days:
    """Saturday goes back and Sunday forward, but never into another month."""

    def near(count: int, first: int) -> int:
        if day > count:
            return 0
        weekday = (first + day - 2) % 7 + 1
        if weekday == _SATURDAY:
            return day - 1 if day > 1 else 3
        if weekday == _SUNDAY:
            return day + 1 if day < count else day - 2
        return day

    return near


def _last_weekday(weekday: int) -> _Days:
    def last(count: int, first: int) -> int:
        return count - ((first + count - 2) % 7 + 1 - weekday) % 7

    return last


def _nth_weekday(weekday: int, number: int) -> _Days:
    def nth(count: int, first: int) -> int:
        day = 1 + (weekday - first) % 7 + 7 * (number - 1)
        return day if day <= count else 0

    return nth


def _bad(field: _Field, item: str, why: str) -> BadCron:
    return BadCron(f"'{_short(item)}' does not fit the field {field.title}: {why}")


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:100] + "…"
