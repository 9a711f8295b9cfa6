"""Plain calls of Conductor's API, for what is not load: definitions and the account.

Threads may share it: each has a connection of its own. Under Locust threads are greenlets.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 30
_PAUSE_S = 0.5
_PASSING = (429, 502, 503, 504)


class Unanswered(Exception):
    """No host gave an answer in all that time."""


class Api:
    """A call goes to one host after the other until one answers, for `patience_s`."""

    def __init__(self, hosts: Sequence[str], *, patience_s: float = 60) -> None:
        self._hosts = [host.rstrip("/").removesuffix("/api") for host in hosts]
        self._patience_s = patience_s
        self._mine = threading.local()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded answer; what passes (no connection, 429, 503) is tried again."""
        encoded = None if body is None else json.dumps(body)
        until = time.monotonic() + self._patience_s
        while True:
            try:
                status, answer = self._once(method, path, encoded)
                if status not in _PASSING:
                    return status, answer
                why = f"status {status}"
            except (OSError, http.client.HTTPException) as error:
                self._mine.connection = None
                self._mine.turn = getattr(self._mine, "turn", 0) + 1
                why = repr(error)
            if time.monotonic() > until:
                raise Unanswered(f"{method} {path}: {why}")
            time.sleep(_PAUSE_S)

    def _once(self, method: str, path: str, encoded: str | None) -> tuple[int, Any]:
        connection, prefix = self._connected()
        headers = {"Content-Type": "application/json"} if encoded is not None else {}
        connection.request(method, f"{prefix}/api{path}", encoded, headers)
        response = connection.getresponse()
        content = response.read()
        if not content:
            return response.status, None
        try:
            return response.status, json.loads(content)
        except ValueError:
            return response.status, content.decode(errors="replace")

    def _connected(self) -> tuple[http.client.HTTPConnection, str]:
        url = urlsplit(self._hosts[getattr(self._mine, "turn", 0) % len(self._hosts)])
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if connection is None:
            kinds = {"https": http.client.HTTPSConnection, "http": http.client.HTTPConnection}
            connection = kinds[url.scheme](str(url.hostname), url.port, timeout=_TIMEOUT_S)
            self._mine.connection = connection
        return connection, url.path
