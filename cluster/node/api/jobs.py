"""Bulk jobs: an extension, see docs/extensions.md."""

import msgspec

from cluster.node.api.bodies import read, reader
from cluster.node.api.services import Services
from cluster.node.jobs import Order
from cluster.node.middleware import Answer, Call, Route

_ORDER = reader(Order)
_encode = msgspec.json.Encoder().encode


def routes(services: Services) -> list[Route]:
    api = JobApi(services)
    base = "/api/workflow/bulk/jobs"
    return [
        Route("POST", base, api.create),
        Route("GET", base, api.all),
        Route("GET", f"{base}/{{jobId}}", api.get),
        Route("DELETE", f"{base}/{{jobId}}", api.cancel),
    ]


class JobApi:
    def __init__(self, services: Services) -> None:
        self._jobs = services.jobs

    async def create(self, call: Call) -> Answer:
        return Answer(_encode(await self._jobs.create(read(_ORDER, call.body))))

    async def all(self, _call: Call) -> Answer:
        return Answer(_encode(await self._jobs.all()))

    async def get(self, call: Call) -> Answer:
        return Answer(_encode(await self._jobs.get(call.path["jobId"])))

    async def cancel(self, call: Call) -> Answer:
        return Answer(_encode(await self._jobs.cancel(call.path["jobId"])))
