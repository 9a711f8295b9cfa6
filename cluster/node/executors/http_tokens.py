"""Access tokens for HTTP tasks by OAuth 2 client credentials, kept until they expire."""

import asyncio
from collections import OrderedDict

import aiohttp
import msgspec
from aiohttp import ClientSession, encode_basic_auth

from cluster.clock import Clock
from cluster.node.executors.http_requests import OAuth2
from cluster.system_tasks import WorkFailed

_KEPT_MAX = 1_000
_EARLY_MS = 30_000
"""A token is not used in its last moments: it has to get there."""
_DEFAULT_S = 300
_ANSWER_BYTES_MAX = 64 * 1024


class _Token(msgspec.Struct):
    text: str
    until_ms: int
    """By the monotonic clock."""


class _Answer(msgspec.Struct):
    access_token: str
    expires_in: float = _DEFAULT_S
    token_type: str = "Bearer"


_read_answer = msgspec.json.Decoder(_Answer, strict=False).decode


class Tokens:
    """One token for each set of credentials; whoever comes meanwhile waits for the same answer."""

    def __init__(self, session: ClientSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._tokens: OrderedDict[OAuth2, _Token] = OrderedDict()
        self._asking: dict[OAuth2, asyncio.Lock] = {}

    async def of(self, credentials: OAuth2) -> str:
        """A token that is valid still. WorkFailed: there is none to be had."""
        lock = self._asking.setdefault(credentials, asyncio.Lock())
        try:
            async with lock:
                known = self._tokens.get(credentials)
                if known is None or known.until_ms <= self._clock.monotonic_ms():
                    known = await self._ask(credentials)
                    self._tokens[credentials] = known
                    while len(self._tokens) > _KEPT_MAX:
                        self._tokens.popitem(last=False)
                return known.text
        finally:
            if not lock.locked():
                self._asking.pop(credentials, None)

    def forget(self, credentials: OAuth2, token: str) -> None:
        """A server did not take it."""
        known = self._tokens.get(credentials)
        if known is not None and known.text == token:
            del self._tokens[credentials]

    async def _ask(self, credentials: OAuth2) -> _Token:
        form = {"grant_type": "client_credentials"}
        if credentials.scope:
            form["scope"] = credentials.scope
        if credentials.audience:
            form["audience"] = credentials.audience
        headers = {"Accept": "application/json"}
        if credentials.client_authentication == "post":
            form |= {
                "client_id": credentials.client_id,
                "client_secret": credentials.client_secret,
            }
        else:
            headers["Authorization"] = encode_basic_auth(
                credentials.client_id, credentials.client_secret, "utf-8"
            )
        try:
            async with self._session.post(
                credentials.token_uri, data=form, headers=headers, allow_redirects=False
            ) as response:
                body = await response.content.read(_ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            raise WorkFailed(f"No token from {credentials.token_uri}: {failure}") from None
        if response.status != 200:
            raise WorkFailed(f"No token from {credentials.token_uri}: status {response.status}")
        try:
            answer = _read_answer(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as fault:
            raise WorkFailed(f"No token from {credentials.token_uri}: {fault}") from None
        lasts_ms = max(0, int(answer.expires_in * 1000) - _EARLY_MS)
        return _Token(answer.access_token, self._clock.monotonic_ms() + lasts_ms)
