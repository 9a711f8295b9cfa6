"""The REST API: one module per Conductor resource, each a set of tiny handlers."""

from cluster.node.api import bulk, health, later, metadata, tasks, workflow
from cluster.node.api.services import Services
from cluster.node.middleware import Route


def routes(services: Services) -> list[Route]:
    """Every route this node serves, in an order in which the first that fits is the right one."""
    return [
        *tasks.routes(services),
        *bulk.routes(services),
        *workflow.routes(services),
        *metadata.routes(services),
        *health.routes(services),
        *later.routes(),
    ]
