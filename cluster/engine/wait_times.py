"""How long a WAIT waits: reads the texts of its inputs `duration` and `until`."""

import re
from datetime import UTC, datetime, timedelta

DURATION_NUMBER_MAX = 2**31 - 1

# The order is fixed and no unit comes twice: "2 days 3 hours 5m 10s".
_UNITS = (
    (86_400, frozenset({"d", "day", "days"})),
    (3_600, frozenset({"h", "hr", "hrs", "hour", "hours"})),
    (60, frozenset({"m", "min", "mins", "minute", "minutes"})),
    (1, frozenset({"s", "sec", "secs", "second", "seconds"})),
)
_PART = re.compile(r"([0-9]{1,10})\s*([a-zA-Z]+)\s*")
_UNTIL = re.compile(
    r"\s*(\d{1,9})-\s*(\d{1,4})-\s*(\d{1,4})(?:\s+(\d{1,4}):\s*(\d{1,4})(?: ([^ ]+))?)?", re.ASCII
)
_OFFSET = re.compile(r"(?:GMT([+-])(\d{1,2}):(\d{2})|([+-])(\d{2})(\d{2}))", re.ASCII)

# Offsets from UTC in minutes. Where a name has two meanings this is the one Java gives it.
_ZONES = {
    "UTC": 0, "GMT": 0, "WET": 0, "WEST": 60, "BST": 60, "CET": 60, "CEST": 120, "MET": 60,
    "MEST": 120, "EET": 120, "EEST": 180, "MSK": 180, "PKT": 300, "IST": 330, "HKT": 480,
    "SGT": 480, "AWST": 480, "JST": 540, "KST": 540, "ACST": 570, "ACDT": 630, "AEST": 600,
    "AEDT": 660, "NZST": 720, "NZDT": 780, "WAT": 60, "CAT": 120, "SAST": 120, "EAT": 180,
    "BRT": -180, "ART": -180, "NST": -210, "NDT": -150, "AST": -240, "ADT": -180, "EST": -300,
    "EDT": -240, "CST": -360, "CDT": -300, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420,
    "AKST": -540, "AKDT": -480, "HST": -600,
}  # fmt: skip


def duration_seconds(text: str) -> int | None:
    """Seconds of a text such as "2 days 3 hours 5m 10s"; 0 for a blank one, None if unreadable."""
    rest = text.strip()
    seconds, unit = 0, 0
    while rest:
        part = _PART.match(rest)
        if part is None or int(part[1]) > DURATION_NUMBER_MAX:
            return None
        while unit < len(_UNITS) and part[2].lower() not in _UNITS[unit][1]:
            unit += 1
        if unit == len(_UNITS):
            return None
        seconds += int(part[1]) * _UNITS[unit][0]
        unit += 1
        rest = rest[part.end() :]
    return seconds


def until_ms(text: str) -> int | None:
    """Unix ms of "yyyy-MM-dd", "yyyy-MM-dd HH:mm" or "yyyy-MM-dd HH:mm z"; None if unreadable.

    UTC if no zone is given. As in Conductor, what is too much for one field goes over into the
    next: 2030-13-01 is the first of January 2031.
    """
    found = _UNTIL.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute = (int(part or 0) for part in found.groups()[:5])
    offset = 0 if found[6] is None else _offset_minutes(found[6])
    if offset is None:
        return None
    try:
        start = datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, 1, tzinfo=UTC)
        due = start + timedelta(days=day - 1, hours=hour, minutes=minute - offset)
    except (ValueError, OverflowError):
        return None
    return (due - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _offset_minutes(zone: str) -> int | None:
    named = _ZONES.get(zone.upper())
    if named is not None:
        return named
    found = _OFFSET.fullmatch(zone)
    if found is None:
        return None
    sign, hours, minutes = found[1] or found[4], found[2] or found[5], found[3] or found[6]
    return (int(hours) * 60 + int(minutes)) * (-1 if sign == "-" else 1)
