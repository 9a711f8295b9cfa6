"""The cluster for operators and for Prometheus: members, shards, drain."""

import orjson

from cluster.node.api.services import Services
from cluster.node.middleware import Answer, Call, Route


def routes(services: Services) -> list[Route]:
    overview = services.overview

    async def targets(_call: Call) -> Answer:
        return Answer(orjson.dumps(await overview.targets()))

    async def status(_call: Call) -> Answer:
        return Answer(orjson.dumps(await overview.status()))

    async def shards(_call: Call) -> Answer:
        return Answer(orjson.dumps(await overview.shards()))

    async def drain(call: Call) -> Answer:
        await overview.drain(call.path["node"])
        return Answer(b'{"draining":true}')

    return [
        Route("GET", "/cluster/targets", targets),
        Route("GET", "/cluster/status", status),
        Route("GET", "/cluster/shards", shards),
        Route("POST", "/cluster/drain/{node}", drain),
    ]
