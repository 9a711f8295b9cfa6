"""Cron expressions: what they match, in which order, in zones whose clocks are changed."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine.cron import BadCron, Cron
from cluster.engine.zoned_cron import BadZone, ZonedCron, latest, zone_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


def walls(expression: str, after: str, count: int) -> list[str]:
    """The next matching times after one, without zone."""
    cron, wall, found = Cron(expression), datetime.fromisoformat(after), []
    for _ in range(count):
        following = cron.next_wall(wall)
        if following is None:
            break
        wall = following
        found.append(wall.isoformat(" "))
    return found


def instants(expression: str, zone: str, after: str, count: int) -> list[str]:
    """The next instants after a UTC time, each as the clocks of the zone show it."""
    cron = ZonedCron(expression, zone)
    at = ms(datetime.fromisoformat(after).replace(tzinfo=UTC))
    found = []
    for _ in range(count):
        following = cron.next_after(at)
        assert following is not None
        assert following > at
        at = following
        local = (EPOCH + timedelta(milliseconds=at)).astimezone(zone_of(zone))
        found.append(local.strftime("%m-%d %H:%M:%S%z"))
    return found


@pytest.mark.parametrize(
    ("expression", "after", "found"),
    [
        ("* * * * * *", "2026-12-31 23:59:58", ["2026-12-31 23:59:59", "2027-01-01 00:00:00"]),
        ("0 */15 * * * *", "2026-11-21 10:50:00", ["2026-11-21 11:00:00", "2026-11-21 11:15:00"]),
        ("5/20 0 9 * * *", "2026-11-21 09:00:25", ["2026-11-21 09:00:45", "2026-11-22 09:00:05"]),
        ("0 0 9-17/4 * * *", "2026-11-21 13:00:00", ["2026-11-21 17:00:00", "2026-11-22 09:00:00"]),
        ("0 30 1,3 * * ?", "2026-11-21 01:30:00", ["2026-11-21 03:30:00", "2026-11-22 01:30:00"]),
        ("0 0 0 ? * MON-FRI", "2026-11-20 00:00:00", ["2026-11-23 00:00:00"]),
        (
            "0 0 0 * * sat-sun",
            "2026-11-20 00:00:00",
            ["2026-11-21 00:00:00", "2026-11-22 00:00:00"],
        ),
        (
            "0 0 0 * * FRI-MON",
            "2026-11-21 00:00:00",
            ["2026-11-22 00:00:00", "2026-11-23 00:00:00"],
        ),
        ("0 0 0 * * 0", "2026-11-21 00:00:00", ["2026-11-22 00:00:00", "2026-11-29 00:00:00"]),
        ("0 0 0 * * 7", "2026-11-21 00:00:00", ["2026-11-22 00:00:00", "2026-11-29 00:00:00"]),
        ("0 0 0 * * 1", "2026-11-21 00:00:00", ["2026-11-23 00:00:00", "2026-11-30 00:00:00"]),
        ("0 0 0 * * 0-2", "2026-11-21 00:00:00", ["2026-11-22 00:00:00", "2026-11-23 00:00:00"]),
        ("0 0 0 * * */2", "2026-11-21 00:00:00", ["2026-11-22 00:00:00", "2026-11-23 00:00:00"]),
        ("0 0 0 13 * FRI", "2026-03-01 00:00:00", ["2026-03-13 00:00:00", "2026-11-13 00:00:00"]),
        ("0 0 0 29 2 *", "2026-01-01 00:00:00", ["2028-02-29 00:00:00", "2032-02-29 00:00:00"]),
        ("0 0 0 29 2 *", "2096-03-01 00:00:00", ["2104-02-29 00:00:00"]),
        ("0 0 0 31 * *", "2026-08-31 00:00:00", ["2026-10-31 00:00:00", "2026-12-31 00:00:00"]),
        ("0 0 0 L * *", "2028-01-31 00:00:00", ["2028-02-29 00:00:00", "2028-03-31 00:00:00"]),
        ("0 0 0 L-3 * *", "2026-02-01 00:00:00", ["2026-02-25 00:00:00", "2026-03-28 00:00:00"]),
        ("0 0 0 L-30 * *", "2026-02-01 00:00:00", ["2026-03-01 00:00:00", "2026-05-01 00:00:00"]),
        ("0 0 0 LW * *", "2026-02-01 00:00:00", ["2026-02-27 00:00:00", "2026-03-31 00:00:00"]),
        ("0 0 0 LW * *", "2026-05-01 00:00:00", ["2026-05-29 00:00:00"]),
        ("0 0 0 15W * *", "2026-08-01 00:00:00", ["2026-08-14 00:00:00", "2026-09-15 00:00:00"]),
        ("0 0 0 15W * *", "2026-11-01 00:00:00", ["2026-11-16 00:00:00"]),
        ("0 0 0 1W * *", "2026-07-31 00:00:00", ["2026-08-03 00:00:00", "2026-09-01 00:00:00"]),
        ("0 0 0 31W * *", "2027-01-01 00:00:00", ["2027-01-29 00:00:00", "2027-03-31 00:00:00"]),
        ("0 0 0 * * 5L", "2026-11-01 00:00:00", ["2026-11-27 00:00:00", "2026-12-25 00:00:00"]),
        ("0 0 0 * * FRIL", "2026-11-01 00:00:00", ["2026-11-27 00:00:00"]),
        ("0 0 0 * * 1#1", "2026-11-01 00:00:00", ["2026-11-02 00:00:00", "2026-12-07 00:00:00"]),
        ("0 0 0 * * SUN#5", "2026-11-01 00:00:00", ["2026-11-29 00:00:00", "2027-01-31 00:00:00"]),
        (
            "0 0 0 * * MON#1,FRIL",
            "2026-11-01 00:00:00",
            ["2026-11-02 00:00:00", "2026-11-27 00:00:00"],
        ),
        (
            "0 0 0 1,15W,L * *",
            "2026-11-01 00:00:00",
            ["2026-11-16 00:00:00", "2026-11-30 00:00:00"],
        ),
        (
            "0 0 12 1 JAN,jul *",
            "2026-02-01 00:00:00",
            ["2026-07-01 12:00:00", "2027-01-01 12:00:00"],
        ),
        ("@hourly", "2026-11-21 10:00:00", ["2026-11-21 11:00:00"]),
        ("@Daily", "2026-11-21 10:00:00", ["2026-11-22 00:00:00"]),
        ("@midnight", "2026-11-21 10:00:00", ["2026-11-22 00:00:00"]),
        ("@weekly", "2026-11-21 10:00:00", ["2026-11-22 00:00:00"]),
        ("@monthly", "2026-11-21 10:00:00", ["2026-12-01 00:00:00"]),
        ("@yearly", "2026-11-21 10:00:00", ["2027-01-01 00:00:00"]),
        ("@annually", "2026-11-21 10:00:00", ["2027-01-01 00:00:00"]),
        ("  0   0 0\t* * *  ", "2026-11-21 10:00:00", ["2026-11-22 00:00:00"]),
        ("0 0 0 31 2 *", "2026-01-01 00:00:00", []),
        ("0 0 0 30 2 *", "2026-01-01 00:00:00", []),
    ],
)
def test_the_next_times(expression: str, after: str, found: list[str]) -> None:
    assert walls(expression, after, max(1, len(found))) == found


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "has 0 fields"),
        ("* * * * *", "has 5 fields; it takes 6"),
        ("0 0 0 ? * * 2030", "has 7 fields"),
        ("every day", "has 2 fields"),
        ("@often", "is no macro"),
        ("60 * * * * *", "field second: it goes from 0 to 59"),
        ("0 60 * * * *", "field minute: it goes from 0 to 59"),
        ("0 0 24 * * *", "field hour: it goes from 0 to 23"),
        ("0 0 0 0 * *", "field day of month: it goes from 1 to 31"),
        ("0 0 0 32 * *", "field day of month: it goes from 1 to 31"),
        ("0 0 0 * 13 *", "field month: it goes from 1 to 12"),
        ("0 0 0 * * 8", "field day of week: it goes from 0 to 7"),
        ("0 0 0 * FOO *", "'FOO' is no month"),
        ("0 0 0 * * FOO", "'FOO' is no day of week"),
        ("0 0 0 * * FOO#1", "'FOO' is no day of week"),
        ("0 0 0 * * MON#6", "at most five"),
        ("0 0 0 * * MON#0", "at most five"),
        ("0 0 17-9 * * *", "field hour: a range goes upwards"),
        ("*/0 * * * * *", "field second: a step is a number from 1"),
        ("*/x * * * * *", "a step is a number from 1"),
        ("1- * * * * *", "'' is no second"),
        ("-1 * * * * *", "'' is no second"),
        ("1,,2 * * * * *", "'' is no second"),
        ("? * * * * *", "'?' is no second"),
        ("L * * * * *", "'L' is no second"),
        ("0 0 0 32W * *", "it goes from 1 to 31"),
        ("0 0 0 L+1 * *", "is no day of month"),
        ("0 0 0 * * L", "'L' is no day of week"),
        ("1.5 * * * * *", "is no second"),
        ("¹ * * * * *", "is no second"),
        ("٣ * * * * *", "is no second"),
        ("99999999999999999999 * * * * *", "it goes from 0 to 59"),
        ("x" * 5_000 + " * * * * *", "X…"),
    ],
)
def test_what_is_wrong_is_named(expression: str, complaint: str) -> None:
    with pytest.raises(BadCron) as refused:
        Cron(expression)
    assert complaint in str(refused.value)
    assert len(str(refused.value)) < 400


# -- zones


def test_a_time_that_is_left_out_comes_at_the_change() -> None:
    # Clocks go from 02:00 to 03:00.
    found = instants("0 30 2 * * *", "Europe/Berlin", "2026-03-27 12:00", 3)
    assert found == ["03-28 02:30:00+0100", "03-29 03:00:00+0200", "03-30 02:30:00+0200"]


def test_several_times_that_are_left_out_come_once() -> None:
    found = instants("0 0,20,40 2,3 * * *", "Europe/Berlin", "2026-03-29 00:30", 4)
    assert found == [
        "03-29 03:00:00+0200",
        "03-29 03:20:00+0200",
        "03-29 03:40:00+0200",
        "03-30 02:00:00+0200",
    ]


def test_a_time_that_is_repeated_comes_the_first_time() -> None:
    # Clocks go from 03:00 back to 02:00.
    found = instants("0 30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", 2)
    assert found == ["10-25 02:30:00+0200", "10-26 02:30:00+0100"]
    found = instants("0 30 1 * * *", "America/New_York", "2026-10-31 12:00", 2)
    assert found == ["11-01 01:30:00-0400", "11-02 01:30:00-0500"]


def test_what_is_asked_between_the_two_does_not_come_again() -> None:
    # 02:10 for the second time.
    found = instants("0 30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", 1)
    assert found == ["10-26 02:30:00+0100"]


def test_what_names_no_hour_goes_by_the_time_that_passes() -> None:
    found = instants("0 0/30 * * * *", "Europe/Berlin", "2026-10-24 23:40", 6)
    assert found == [
        "10-25 02:00:00+0200",
        "10-25 02:30:00+0200",
        "10-25 02:00:00+0100",
        "10-25 02:30:00+0100",
        "10-25 03:00:00+0100",
        "10-25 03:30:00+0100",
    ]
    found = instants("0 30 * * * *", "Europe/Berlin", "2026-03-29 00:00", 3)
    assert found == ["03-29 01:30:00+0100", "03-29 03:30:00+0200", "03-29 04:30:00+0200"]


def test_half_an_hour_at_lord_howe() -> None:
    found = instants("0 45 1 * * *", "Australia/Lord_Howe", "2026-04-03 12:00", 3)
    assert found == ["04-04 01:45:00+1100", "04-05 01:45:00+1100", "04-06 01:45:00+1030"]
    found = instants("0 15 2 * * *", "Australia/Lord_Howe", "2026-10-02 12:00", 3)
    assert found == ["10-03 02:15:00+1030", "10-04 02:30:00+1100", "10-05 02:15:00+1100"]


def test_a_day_that_begins_an_hour_late() -> None:
    # In Santiago and Beirut clocks are changed at midnight.
    found = instants("0 0 0 * * *", "America/Santiago", "2026-09-05 12:00", 2)
    assert found == ["09-06 01:00:00-0300", "09-07 00:00:00-0300"]
    found = instants("@daily", "Asia/Beirut", "2026-03-28 12:00", 2)
    assert found == ["03-29 01:00:00+0300", "03-30 00:00:00+0300"]


@pytest.mark.parametrize(
    ("zone", "first"),
    [
        ("UTC", "11-22 09:00:00+0000"),
        ("Z", "11-22 09:00:00+0000"),
        ("GMT", "11-22 09:00:00+0000"),
        ("+05:30", "11-22 09:00:00+0530"),
        ("-3", "11-22 09:00:00-0300"),
        ("UTC+2", "11-22 09:00:00+0200"),
        ("GMT-0800", "11-22 09:00:00-0800"),
        ("Asia/Kolkata", "11-22 09:00:00+0530"),
        ("Asia/Kathmandu", "11-22 09:00:00+0545"),
        ("Etc/GMT+5", "11-22 09:00:00-0500"),
    ],
)
def test_zones(zone: str, first: str) -> None:
    assert instants("0 0 9 22 11 *", zone, "2026-11-20 00:00", 1) == [first]


@pytest.mark.parametrize(
    "zone", ["Nowhere/Land", "", "../../etc/passwd", "/etc/passwd", "Europe", "+25:00", "a\0b", "é"]
)
def test_zones_that_nobody_knows(zone: str) -> None:
    with pytest.raises(BadZone):
        ZonedCron("* * * * * *", zone)


# -- properties

CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("America/St_Johns", datetime(2026, 3, 8, 5, 30, tzinfo=UTC)),
    ("America/St_Johns", datetime(2026, 11, 1, 4, 30, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 9, 6, 4, tzinfo=UTC)),
    ("Africa/Casablanca", datetime(2026, 3, 22, 2, tzinfo=UTC)),
    ("UTC", datetime(2026, 12, 31, 23, tzinfo=UTC)),
]


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    several = st.lists(number, min_size=1, max_size=3).map(lambda some: ",".join(map(str, some)))
    step = st.builds(lambda start, every: f"{start}/{every}", number, st.integers(1, high))
    span = st.tuples(number, number).map(lambda two: f"{min(two)}-{max(two)}")
    return st.one_of(st.just("*"), several, step, span)


expressions = st.builds(
    lambda *parts: " ".join(parts),
    st.sampled_from(["0", "0,30", "15"]),
    field(0, 59),
    field(0, 23),
    st.sampled_from(["*", "?", "L", "LW", "1", "25", "29", "1-8"]),
    st.just("*"),
    st.sampled_from(["*", "?", "SUN", "SUNL", "7#1", "7#2", "SAT-SUN"]),
)


@lru_cache(maxsize=100)
def has_day(expression: str, day: date) -> bool:
    """Whether it matches at any time of a day; a look at the next time may take long."""
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001
    following = Cron(expression).next_wall(midnight - timedelta(seconds=1))
    return following is not None and following.date() == day


def matches(cron: Cron, wall: datetime) -> bool:
    if not has_day(cron.expression, wall.date()):
        return False
    return cron.next_wall(wall - timedelta(seconds=1)) == wall


def expected(cron: Cron, zone: ZoneInfo, first: datetime, last: datetime) -> Iterator[datetime]:
    """The instants in (first, last], by looking at each second that the clocks of a zone show."""
    at = first + timedelta(seconds=1)
    before = first.astimezone(zone).replace(tzinfo=None, fold=0)
    while at <= last:
        local = at.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0)
        if cron.is_hourly:
            if matches(cron, wall):
                yield at
        elif wall > before + timedelta(seconds=1):
            # The clocks were put forward: what they left out, and what they show now.
            left_out = cron.next_wall(before)
            if left_out is not None and left_out <= wall:
                yield at
        elif not local.fold and matches(cron, wall):
            yield at
        before = wall
        at += timedelta(seconds=1)


@settings(max_examples=60, deadline=None)
@given(change=st.sampled_from(CHANGES), expression=expressions, minutes=st.integers(0, 150))
def test_around_a_change_of_the_clocks(
    change: tuple[str, datetime], expression: str, minutes: int
) -> None:
    """As one would find them by looking at the clock each second."""
    zone_id, at = change
    first = at - timedelta(minutes=minutes)
    last = at + timedelta(minutes=150)
    wanted = list(expected(Cron(expression), ZoneInfo(zone_id), first, last))
    cron, found, place = ZonedCron(expression, zone_id), [], ms(first)
    while (following := cron.next_after(place)) is not None and following <= ms(last):
        found.append(EPOCH + timedelta(milliseconds=following))
        place = following
    assert found == wanted


@given(
    expression=expressions,
    zone=st.sampled_from([zone for zone, _ in CHANGES]),
    at=st.integers(1_700_000_000_000, 2_000_000_000_000),
    later=st.integers(0, 90_000_000),
)
def test_the_next_instant_is_later_and_whole_and_the_first(
    expression: str, zone: str, at: int, later: int
) -> None:
    cron = ZonedCron(expression, zone)
    following = cron.next_after(at)
    if following is None:
        return
    assert following > at
    assert following % 1000 == 0
    # Nothing lies between: from anywhere before it, it is the next.
    between = min(at + later, following - 1)
    assert cron.next_after(between) == following
    assert latest(cron.next_after, following, following + 3_600_000) >= following


@given(count=st.integers(1, 500), rest=st.integers(0, 999))
def test_the_latest_of_many(count: int, rest: int) -> None:
    cron = ZonedCron("*/7 * * * * *", "UTC")
    instants = [0]
    for _ in range(count):
        following = cron.next_after(instants[-1])
        assert following is not None
        instants.append(following)
    assert latest(cron.next_after, instants[1], instants[-1] + rest) == instants[-1]


def test_near_the_end_of_the_calendar_nothing_comes() -> None:
    assert ZonedCron("* * * * * *", "Pacific/Kiritimati").next_after(253_402_300_799_000) is None
