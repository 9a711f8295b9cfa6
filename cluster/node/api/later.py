"""Conductor's paths that this version does not serve yet: 501, and said so."""

from cluster.errors import NotSupported
from cluster.node.middleware import Answer, Call, Route

_PATHS = """
GET    /api/admin/config
POST   /api/admin/consistency/verifyAndRepair/{workflowId}
GET    /api/admin/queues
POST   /api/admin/sweep/requeue/{workflowId}
GET    /api/admin/task/{tasktype}
GET    /api/environment
GET    /api/environment/{key}
GET    /api/event
POST   /api/event
PUT    /api/event
GET    /api/event/{event}
DELETE /api/event/{event}
GET    /api/queue/
GET    /api/queue/size
POST   /api/queue/update/{workflowId}/task/{taskId}/{status}
POST   /api/queue/update/{workflowId}/{ref}/{status}
GET    /api/secrets
POST   /api/secrets
GET    /api/tasks/external-storage-location
GET    /api/tasks/externalstoragelocation
GET    /api/workflow/external-storage-location
GET    /api/workflow/externalstoragelocation
POST   /api/workflow/test
"""


def routes() -> list[Route]:
    return [_route(*line.split()) for line in _PATHS.strip().splitlines()]


def _route(method: str, pattern: str) -> Route:
    async def refuse(_call: Call) -> Answer:
        raise NotSupported(f"{method} {pattern} is not served by this version yet")

    return Route(method, pattern, refuse)
