"""Health, version and metrics."""

import orjson

from cluster import __version__
from cluster.node.api.services import Services
from cluster.node.middleware import Answer, Call, Route, plain

_HEALTHY = orjson.dumps({"healthResults": [], "suppressedHealthResults": [], "healthy": True})
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def routes(services: Services) -> list[Route]:
    async def health(_call: Call) -> Answer:
        return Answer(_HEALTHY)

    async def live(_call: Call) -> Answer:
        # To answer is to live: the event loop runs.
        return Answer(b'{"status":"UP"}')

    async def ready(_call: Call) -> Answer:
        if services.is_ready():
            return Answer(b'{"status":"UP"}')
        return Answer(b'{"status":"DOWN"}', status=503)

    async def version(_call: Call) -> Answer:
        return plain(__version__)

    async def metrics(_call: Call) -> Answer:
        await services.measure()
        return Answer(services.metrics.render(), content_type=_METRICS_TYPE)

    return [
        Route("GET", "/health", health),
        Route("GET", "/api/health", health),
        Route("GET", "/health/live", live),
        Route("GET", "/health/ready", ready),
        Route("GET", "/api/version", version),
        Route("GET", "/metrics", metrics),
    ]
