"""What the handlers of all resources work with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.clock import Clock, Random
from cluster.metrics import Metrics
from cluster.node.jobs import BulkJobs
from cluster.node.limits import TaskLimits
from cluster.node.metadata import Metadata
from cluster.node.overview import Overview
from cluster.node.poll import PollDesk
from cluster.node.router import Router
from cluster.node.schedule_book import ScheduleBook
from cluster.node.scheduler_switch import SchedulerSwitch
from cluster.node.search import Search
from cluster.node.task_search import TaskSearch
from cluster.settings import Settings
from cluster.store.ports import RecordStore, SearchIndex
from cluster.store.queue_ports import TaskQueues


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of one node, put together in `app.py`."""

    router: Router
    metadata: Metadata
    limits: TaskLimits
    desk: PollDesk
    jobs: BulkJobs
    schedule_book: ScheduleBook
    scheduler_switch: SchedulerSwitch
    queues: TaskQueues
    search: SearchIndex
    searches: Search
    task_searches: TaskSearch
    records: RecordStore
    clock: Clock
    random: Random
    metrics: Metrics
    settings: Settings
    catch_up: Callable[[], Awaitable[None]]
    """Bring the search index up to all that has been answered so far."""
    save_poll_data: Callable[[], Awaitable[None]]
    """Bring the stored poll data up to now."""
    measure: Callable[[], Awaitable[None]]
    """Set the metrics that are measured when they are asked for."""
    overview: Overview
    is_ready: Callable[[], bool]
    """Whether this node serves its shards and takes requests."""

    def new_request_id(self) -> str:
        """A random UUID for a request that brought no id of its own."""
        digits = f"{self.random.bits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
