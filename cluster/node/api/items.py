"""Bodies that hold many items, and what is answered for each of them.

An item that does not fit is answered as such and spoils no other. A body that is no list of items,
or too long a one, is refused as a whole.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from cluster.errors import ClusterError, InvalidRequest, TooLarge, ValidationFailed
from cluster.metrics import Metrics
from cluster.node.api.bodies import read, reader
from cluster.node.metadata import NoSuchWorkflow

ITEMS_MAX = 1_000
BYTES_MAX = 8 * 1024 * 1024
NDJSON = "application/x-ndjson"

T = TypeVar("T")
_RAWS = reader(list[msgspec.Raw])


class ItemResult(msgspec.Struct, omit_defaults=True):
    """What became of one item: an HTTP status, with an id or the reason."""

    index: int
    status: int
    id: str | None = None
    message: str | None = None


encode_results = msgspec.json.Encoder().encode


class Items(Generic[T]):
    """Reads lists of one kind of item."""

    def __init__(self, kind: type[T]) -> None:
        self._one: msgspec.json.Decoder[T] = reader(kind)
        bounded: Any = Annotated[list[kind], msgspec.Meta(max_length=ITEMS_MAX)]  # type: ignore[valid-type]
        self._all: msgspec.json.Decoder[list[T]] = reader(bounded)

    def of_body(self, body: bytes, content_type: str) -> Sequence[T | InvalidRequest]:
        """The items of a JSON array, or of lines of JSON if the body is said to be that.

        InvalidRequest: it is neither, or holds too many; TooLarge.
        """
        check_size(body)
        return self._of_lines(body) if content_type == NDJSON else self.of_array(body)

    def of_array(self, body: bytes) -> Sequence[T | InvalidRequest]:
        try:
            # Nearly always all of them fit: then they are read in one go.
            if not body.isascii():
                body.decode()
            return self._all.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raws = read(_RAWS, body)
        if len(raws) > ITEMS_MAX:
            raise _too_many()
        return [self._item(bytes(raw)) for raw in raws]

    def _of_lines(self, body: bytes) -> Sequence[T | InvalidRequest]:
        # Blank lines cost memory too.
        if body.count(b"\n") > 2 * ITEMS_MAX:
            raise _too_many()
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) > ITEMS_MAX:
            raise _too_many()
        return [self._item(line) for line in lines]

    def _item(self, encoded: bytes) -> T | InvalidRequest:
        try:
            return read(self._one, encoded)
        except InvalidRequest as refusal:
            return refusal


def check_size(body: bytes) -> None:
    """TooLarge: it is more than a request of many items may have."""
    if len(body) > BYTES_MAX:
        raise TooLarge(f"The body has {len(body)} bytes; at most {BYTES_MAX} are taken at a time")


def refused(index: int, error: ClusterError) -> ItemResult:
    """The result of an item that was not taken."""
    return ItemResult(index, error.status, message=_message_of(error))


def in_order(
    count: int, results: Mapping[int, ItemResult], *, route: str, metrics: Metrics
) -> list[ItemResult]:
    """The results of all items of a request, which are counted."""
    found = [results[index] for index in range(count)]
    for status, items in Counter(result.status for result in found).items():
        metrics.http_items.of(route, str(status)).inc(items)
    return found


def _message_of(error: ClusterError) -> str:
    if isinstance(error, ValidationFailed):
        return "; ".join(violation.message for violation in error.violations)
    return error.start_message if isinstance(error, NoSuchWorkflow) else error.message


def _too_many() -> InvalidRequest:
    return InvalidRequest(
        f"Cannot take more than {ITEMS_MAX} items at a time. Please use multiple requests."
    )
