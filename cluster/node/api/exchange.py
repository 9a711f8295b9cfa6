"""Results of many tasks and polls for several types, also in one round trip: extensions, see
docs/extensions.md."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec

from cluster.errors import ClusterError, InvalidRequest
from cluster.node.api.bodies import TaskResultBody, Text, as_text, read, reader
from cluster.node.api.items import (
    ItemResult,
    Items,
    check_size,
    encode_results,
    in_order,
    refused,
)
from cluster.node.api.results import Report, report_of
from cluster.node.api.services import Services
from cluster.node.api.tasks import POLL_TIMEOUT_MS
from cluster.node.batches import Batches
from cluster.node.middleware import NO_CONTENT, Answer, Call, Route
from cluster.node.poll import check_timeout

UPDATE, EXCHANGE = "/api/tasks/bulk/update", "/api/tasks/exchange"
TYPES_MAX = 100
"""Task types in one poll."""
_TURN = 100
"""Results that are checked in a row, before others run."""
_METHOD = "updateTasks"


class PollBody(msgspec.Struct, rename="camel"):
    """What tasks a worker wants."""

    types: Annotated[list[str], msgspec.Meta(min_length=1, max_length=TYPES_MAX)]
    count: int = 1
    timeout: int = POLL_TIMEOUT_MS
    worker_id: Text = None
    domain: Text = None


class ExchangeBody(msgspec.Struct, rename="camel"):
    """`results` are read as a list of their own: one that does not fit spoils no other."""

    results: msgspec.Raw = msgspec.Raw(b"[]")
    poll: PollBody | None = None


_EXCHANGE = reader(ExchangeBody)


def routes(services: Services) -> list[Route]:
    api = ExchangeApi(services)
    return [
        Route("POST", UPDATE, api.update),
        Route("GET", "/api/tasks/poll/batch", api.poll),
        Route("POST", EXCHANGE, api.exchange),
    ]


class ExchangeApi:
    def __init__(self, services: Services) -> None:
        self._desk = services.desk
        self._metrics = services.metrics
        self._clock = services.clock
        self._records = services.records
        self._batches = Batches(services.router, services.clock)
        self._items = Items(TaskResultBody)

    async def update(self, call: Call) -> Answer:
        """All that is answered with 200 is durable."""
        bodies = self._items.of_body(call.body, call.content_type)
        return Answer(encode_results({"results": await self._take(bodies, UPDATE)}))

    async def poll(self, call: Call) -> Answer:
        types = call.all_of("type")
        if not types:
            # Conductor's own path: one task of a type that is called "batch".
            tasks = await self._polled(
                call,
                PollBody(["batch"], worker_id=call.text("workerid"), domain=call.text("domain")),
            )
            return Answer(tasks[0]) if tasks else NO_CONTENT
        wanted = PollBody(
            list(types),
            count=call.integer("count", 1),
            timeout=call.integer("timeout", POLL_TIMEOUT_MS),
            worker_id=call.text("workerid"),
            domain=call.text("domain"),
        )
        _check(wanted)
        return Answer(b"[%b]" % b",".join(await self._polled(call, wanted)))

    async def exchange(self, call: Call) -> Answer:
        """Take results first; when they are durable, poll."""
        check_size(call.body)
        body = read(_EXCHANGE, call.body)
        if body.poll is not None:
            _check(body.poll)
        bodies = self._items.of_array(bytes(body.results))
        results = encode_results(await self._take(bodies, EXCHANGE)) if bodies else b"[]"
        tasks: Sequence[bytes] = ()
        if body.poll is not None:
            try:
                tasks = await self._polled(call, body.poll)
            except ClusterError as error:
                # The results were taken, and their worker must hear of it.
                failure = encode_results({"status": error.status, "message": error.message})
                return Answer(b'{"results":%b,"tasks":[],"pollError":%b}' % (results, failure))
        return Answer(b'{"results":%b,"tasks":[%b]}' % (results, b",".join(tasks)))

    async def _take(
        self, bodies: Sequence[TaskResultBody | InvalidRequest], route: str
    ) -> list[ItemResult]:
        results: dict[int, ItemResult] = {}
        reports: list[tuple[int, Report]] = []
        at_ms = self._clock.now_ms()
        for index, body in enumerate(bodies):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            try:
                if isinstance(body, InvalidRequest):
                    raise body
                reports.append((index, report_of(body, _METHOD, at_ms)))
            except ClusterError as refusal:
                results[index] = refused(index, refusal)
        refusals = await self._batches.submit(
            [(report.workflow_id, report.event) for _, report in reports]
        )
        logs = []
        for place, (index, report) in enumerate(reports):
            if place in refusals:
                results[index] = refused(index, refusals[place])
            else:
                results[index] = ItemResult(index, 200, id=report.task_id)
                logs += report.logs
        if logs:
            await self._records.append_task_logs(logs)
        return in_order(len(bodies), results, route=route, metrics=self._metrics)

    async def _polled(self, call: Call, wanted: PollBody) -> list[bytes]:
        worker_id, domain = as_text(wanted.worker_id), as_text(wanted.domain)
        found = await self._desk.poll_any(
            task_types=wanted.types,
            domain=domain,
            worker_id=worker_id,
            count=wanted.count,
            timeout_ms=wanted.timeout,
            connected=call.is_connected,
        )
        if found and not call.is_connected():
            # Its worker went away while the tasks were on their way to it.
            for polled in found:
                await self._desk.hand_back(polled)
        return [body for polled in found for body in polled.bodies]


def _check(wanted: PollBody) -> None:
    """Before anything is changed. InvalidRequest."""
    if len(wanted.types) > TYPES_MAX:
        raise InvalidRequest(f"At most {TYPES_MAX} task types can be polled for at a time")
    if not all(wanted.types):
        raise InvalidRequest("A task type must not be empty")
    check_timeout(wanted.timeout)
