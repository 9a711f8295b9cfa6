"""Users' JSON inside the engine: kept as encoded bytes, decoded when something looks inside."""

from typing import Any

import msgspec
import orjson

EMPTY = b"{}"

_big_encode = msgspec.json.Encoder(decimal_format="number").encode
_big_decode = msgspec.json.Decoder().decode


def dump(value: Any) -> bytes:
    """Encode a JSON value, once: log, store and clients get the same bytes."""
    try:
        # Copied: what orjson returns holds on to its whole buffer, 4 KB at least, and payloads
        # stay in memory with their executions.
        return b"".join((orjson.dumps(value), b""))
    except TypeError:
        # orjson stops at 64-bit integers, JSON does not.
        return _big_encode(value)


def load(encoded: bytes) -> Any:
    """Decode what `dump` or a client produced; raises ValueError on what is no JSON."""
    if not encoded:
        return {}
    try:
        return orjson.loads(encoded)
    except orjson.JSONDecodeError:
        return _big_decode(encoded)


def dump_map(value: dict[str, Any]) -> bytes:
    """Encode a map, sharing the bytes of the empty one."""
    return dump(value) if value else EMPTY
