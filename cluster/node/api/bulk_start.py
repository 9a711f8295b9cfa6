"""Starts of many workflows in one request: an extension, see docs/extensions.md."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from cluster.errors import ClusterError, InvalidRequest
from cluster.node.api.bodies import StartBody
from cluster.node.api.items import ItemResult, Items, encode_results, in_order, refused
from cluster.node.api.services import Services
from cluster.node.api.starts import start_request
from cluster.node.batches import Batches
from cluster.node.middleware import Answer, Call, Route
from cluster.node.router import StartWorkflow

PATH = "/api/workflow/bulk/start"
_TURN = 100
"""Items that are checked in a row, before others run."""


def routes(services: Services) -> list[Route]:
    return [Route("POST", PATH, BulkStartApi(services).start)]


class BulkStartApi:
    def __init__(self, services: Services) -> None:
        self._metrics = services.metrics
        self._batches = Batches(services.router, services.clock)
        self._input_bytes_max = services.settings.workflow_payload_bytes_max
        self._items = Items(StartBody)

    async def start(self, call: Call) -> Answer:
        """All that is answered with an id is durable."""
        bodies = self._items.of_body(call.body, call.content_type)
        call.weigh(len(bodies))
        results: dict[int, ItemResult] = {}
        places: list[int] = []
        requests: list[StartWorkflow] = []
        for index, body in enumerate(bodies):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            try:
                if isinstance(body, InvalidRequest):
                    raise body
                requests.append(start_request(body, input_bytes_max=self._input_bytes_max))
            except ClusterError as refusal:
                results[index] = refused(index, refusal)
            else:
                places.append(index)
        outcomes = await self._batches.start(requests)
        for index, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, ClusterError):
                results[index] = refused(index, outcome)
            else:
                results[index] = ItemResult(index, 200, id=outcome)
        self._count(requests, outcomes)
        answered = in_order(len(bodies), results, route=PATH, metrics=self._metrics)
        return Answer(encode_results({"results": answered}))

    def _count(
        self, requests: Sequence[StartWorkflow], outcomes: Sequence[str | ClusterError]
    ) -> None:
        counts = Counter(
            (request.name, request.version, isinstance(outcome, ClusterError))
            for request, outcome in zip(requests, outcomes, strict=True)
        )
        for (name, version, is_refused), count in counts.items():
            if is_refused:
                self._metrics.workflow_start_error.of(name, "").inc(count)
            else:
                asked = "" if version is None else str(version)
                self._metrics.workflow_start_success.of(name, asked, "").inc(count)
