"""Bodies of many items: read in one go, or one by one where something does not fit."""

import orjson
import pytest

from cluster.errors import InvalidRequest, TooLarge
from cluster.node.api.bodies import StartBody
from cluster.node.api.items import BYTES_MAX, ITEMS_MAX, NDJSON, Items

JSON = "application/json"
ITEMS = Items(StartBody)


def names(body: bytes, content_type: str = JSON) -> list[object]:
    """Of each item its name, or None for one that does not fit."""
    items = ITEMS.of_body(body, content_type)
    return [None if isinstance(item, InvalidRequest) else item.name for item in items]


def test_an_array_and_lines_hold_the_same() -> None:
    bodies = [{"name": "a", "input": {"x": "ü"}}, {"name": "b", "version": "2"}]
    array = orjson.dumps(bodies)
    lines = b"\n".join(map(orjson.dumps, bodies))
    for found in (ITEMS.of_body(array, JSON), ITEMS.of_body(lines, NDJSON)):
        first, second = found
        assert not isinstance(first, InvalidRequest)
        assert not isinstance(second, InvalidRequest)
        assert (first.name, bytes(first.input)) == ("a", '{"x":"ü"}'.encode())
        assert (second.name, second.version) == ("b", 2)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"[]", []),
        (b" [ ] ", []),
        (b'[{"name":"a"},7,null,"x",{"name":"b"}]', ["a", None, None, None, "b"]),
        (b'[{"name":"a","version":"x"},{"name":"b"}]', [None, "b"]),
        (b'[{"name":["a"]},{"name":"b"}]', [None, "b"]),
    ],
)
def test_an_item_that_does_not_fit_spoils_no_other(body: bytes, found: list[object]) -> None:
    assert names(body) == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", []),
        (b"\n\r\n  \n", []),
        (b'{"name":"a"}\r\n\n{"name":"b"}', ["a", "b"]),
        (b'{"name":"a"}\n{"name"\n{"name":"b"}\n', ["a", None, "b"]),
        (b'{"name":"a"}\n[{"name":"b"}]\n{"name":"c"} {"name":"d"}\n', ["a", None, None]),
        (b'{"name":"a"}\n{"name":"\xff"}\n{"name":"b"}', ["a", None, "b"]),
        (b"[" * 100_000 + b'\n{"name":"b"}', [None, "b"]),
    ],
)
def test_a_line_that_is_broken_spoils_no_other(body: bytes, found: list[object]) -> None:
    assert names(body, NDJSON) == found


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'"a"',
        b"7",
        b"null",
        b"[{]",
        b'[{"name":"a"}',
        b"[" * 200_000,
        b'["\xff"]',
        b"\0",
    ],
)
def test_what_is_no_array_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        ITEMS.of_body(body, JSON)


@pytest.mark.parametrize("item", [b'{"name":"a"}', b"7", b"{}"])
def test_no_more_than_a_thousand_are_taken(item: bytes) -> None:
    assert len(names(b"[%b]" % b",".join([item] * ITEMS_MAX))) == ITEMS_MAX
    assert len(names(b"\n".join([item] * ITEMS_MAX), NDJSON)) == ITEMS_MAX
    for count in (ITEMS_MAX + 1, 3 * ITEMS_MAX):
        for body, kind in (
            (b"[%b]" % b",".join([item] * count), JSON),
            (b"\n".join([item] * count), NDJSON),
        ):
            with pytest.raises(InvalidRequest, match="Cannot take more than 1000 items"):
                ITEMS.of_body(body, kind)


def test_no_more_than_eight_mib_are_taken() -> None:
    for kind in (JSON, NDJSON):
        with pytest.raises(TooLarge):
            ITEMS.of_body(b" " * (BYTES_MAX + 1), kind)
