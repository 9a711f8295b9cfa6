"""The usual request, read without a parser's detours: what a worker or a producer sends all day.

Only a strict part of HTTP/1.1 is taken here: a head of well-formed lines that came in one piece,
a body of a known and moderate length, a connection that stays open. All else is aiohttp's to read,
or to refuse.
"""

import re
from functools import lru_cache
from typing import NamedTuple

BODY_BYTES_MAX = 256 << 10

_HEAD_BYTES_MAX = 4096
_CACHED_BYTES_MAX = 512

# No "#": what follows it is not the server's to see.
_LINE = re.compile(rb"(GET|POST|PUT|DELETE) (/[!\"$-~]*) HTTP/1\.1")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_LENGTH = re.compile(rb"[0-9]{1,9}")
# Whoever sends one of these wants more than a plain answer, or its body means something else.
_SPECIAL = frozenset({b"content-encoding", b"expect", b"te", b"trailer", b"transfer-encoding"})
_SPECIAL |= {b"upgrade", b"http2-settings"}


class PlainRequest(NamedTuple):
    method: str
    target: str
    """The path with its query, as it was sent."""
    content_type: str
    body: bytes


class _Headers(NamedTuple):
    length: int
    content_type: str


def read_request(data: bytes) -> PlainRequest | int | None:
    """What came over an idle connection: a request, or how many bytes its body still lacks.

    None: it is not plain, or more than one request.
    """
    head_end = data.find(b"\r\n\r\n", 0, _HEAD_BYTES_MAX)
    line_end = data.find(b"\r\n")
    if head_end < 0:
        return None
    line, block = data[:line_end], data[line_end + 2 : head_end]
    # Clients send the same again and again.
    is_short = head_end <= _CACHED_BYTES_MAX
    asked = (_line_again if is_short else _read_line)(line)
    headers = (_headers_again if is_short else _read_headers)(block)
    if asked is None or headers is None:
        return None
    end = head_end + 4 + headers.length
    if len(data) != end:
        return end - len(data) if len(data) < end else None
    return PlainRequest(*asked, headers.content_type, data[head_end + 4 :])


def _read_line(line: bytes) -> tuple[str, str] | None:
    found = _LINE.fullmatch(line)
    return None if found is None else (found[1].decode("ascii"), found[2].decode("ascii"))


def _read_headers(block: bytes) -> _Headers | None:
    values: dict[bytes, bytes] = {}
    for line in block.split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None:
            return None
        name = found[1].lower()
        if name in values or name in _SPECIAL:
            return None
        values[name] = found[2].rstrip(b" \t")
    length = values.get(b"content-length", b"0")
    keeps = values.get(b"connection", b"keep-alive").lower() == b"keep-alive"
    if not keeps or b"host" not in values or not _LENGTH.fullmatch(length):
        return None
    if int(length) > BODY_BYTES_MAX:
        return None
    return _Headers(int(length), values.get(b"content-type", b"").decode("latin-1"))


_line_again = lru_cache(maxsize=2048)(_read_line)
_headers_again = lru_cache(maxsize=2048)(_read_headers)
