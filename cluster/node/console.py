"""`podium cluster …`: asks a node about its cluster, and writes the answer as a table."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

from cluster.errors import ClusterError, Unreached

_TIMEOUT_S = 20


def status(url: str) -> list[str]:
    """The nodes, and how many shards each serves."""
    answer = _ask(url, "GET", "/cluster/status")
    rows = [
        (
            node["node"],
            node["state"],
            str(node["shards"]),
            node["link"] or "-",
            node["version"],
            _duration(node["upSeconds"]),
        )
        for node in answer["nodes"]
    ]
    lines = _table(("NODE", "STATE", "SHARDS", "LINK", "VERSION", "UP"), rows)
    summary = f"{answer['shards']} shards, seen by {answer['answeredBy']}"
    if answer["shardsWithoutNode"]:
        summary += f"; {answer['shardsWithoutNode']} of them are served by no node"
    return [*lines, "", summary]


def shards(url: str) -> list[str]:
    """Every shard, its owner and how many owners it has had."""
    rows = [
        (str(row["shard"]), row["node"] or "-", str(row["epoch"]), row["log"] or "-")
        for row in _ask(url, "GET", "/cluster/shards")
    ]
    return _table(("SHARD", "NODE", "EPOCH", "LOG"), rows)


def drain(url: str, node: str) -> list[str]:
    """Have a node hand its shards over."""
    _ask(url, "POST", f"/cluster/drain/{urllib.parse.quote(node, safe='')}")
    return [f"{node} hands its shards over; see `podium cluster status`"]


def _ask(url: str, method: str, path: str) -> Any:
    if not url.startswith(("http://", "https://")):
        raise Unreached(f"{url} is no address of a node: http://HOST:PORT")
    request = urllib.request.Request(url.rstrip("/") + path, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as refusal:
        raise ClusterError(_message(refusal)) from None
    except (OSError, HTTPException, ValueError) as error:
        raise Unreached(f"no answer from {url}: {error}") from None


def _message(refusal: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(refusal.read())["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{refusal.url} answers {refusal.code}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"
