"""Log lines as JSON on standard error, each with the node, and the workflow and shard at hand."""

import logging
import sys
from contextlib import AbstractContextManager

import structlog
from structlog.typing import EventDict, WrappedLogger

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def set_up_logs(*, node_id: str, level: str = "info") -> None:
    """Once, before the first line is written. Lines of libraries come out in the same form."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        node_adder(node_id),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    # A driver tells of every reconnect, and asyncio of every slow callback, at a lower level.
    for library in ("asyncio", "aiohttp.access", "cassandra"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Cassandra warns of large batches; ours are of one partition each, and large on purpose.
    logging.getLogger("cassandra.protocol").setLevel(logging.ERROR)


def get_log(name: str) -> structlog.stdlib.BoundLogger:
    """The log of a module: `get_log(__name__)`. An event is a short fixed phrase; data are keys."""
    log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return log


def about_workflow(workflow_id: str, shard: int | None = None) -> AbstractContextManager[None]:
    """Lines written inside, also by what is called, carry the workflow's id and its shard."""
    found: dict[str, object] = {"workflow_id": workflow_id}
    if shard is not None:
        found["shard"] = shard
    return structlog.contextvars.bound_contextvars(**found)


def node_adder(node_id: str) -> structlog.typing.Processor:
    def add_node(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["node"] = node_id
        return event

    return add_node
