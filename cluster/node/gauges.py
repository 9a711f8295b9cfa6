"""Gauges that nobody keeps up to date: set when somebody looks. And the lag of the event loop."""

import asyncio
from collections import Counter
from collections.abc import Callable

from cluster.clock import Clock
from cluster.errors import ClusterError
from cluster.metrics import MEMBER_STATES, Metrics
from cluster.node.incarnation import Home
from cluster.sharding.membership import Presence
from cluster.store.lease_ports import Member
from cluster.store.queue_ports import Queues, task_type_of
from cluster.store.traffic import Traffic

_LAG_EVERY_S = 0.1


class Gauges:
    """What the parts of a node and its queues amount to at present."""

    def __init__(
        self,
        metrics: Metrics,
        home: Home,
        presence: Presence,
        queues: Queues,
        clock: Clock,
        *,
        traffic: Traffic,
        shard_count: int,
        is_alone: bool,
        is_ready: Callable[[], bool],
        own: Callable[[], Member],
    ) -> None:
        """`own` is this node as others are told of it."""
        self._metrics = metrics
        self._home = home
        self._presence = presence
        self._queues = queues
        self._clock = clock
        self._traffic = traffic
        self._shard_count = shard_count
        self._is_alone = is_alone
        self._is_ready = is_ready
        self._own = own

    async def measure(self) -> None:
        """Set the gauges that nobody keeps up to date."""
        await self._measure_queues()
        self._measure_traffic()
        metrics, incarnation = self._metrics, self._home.incarnation
        metrics.node_ready.of().set(self._is_ready())
        metrics.shard_count.of().set(self._shard_count)
        states: list[str] = [self._own().state]
        if not self._is_alone:
            states = [member.state for member in self._presence.members.values()]
        for state in MEMBER_STATES:
            metrics.cluster_members.of(state).set(states.count(state))
        metrics.clock_offset.of().set(self._presence.clock_off_ms / 1000)
        if incarnation is None:
            metrics.shard_owned.of().set(0)
            return
        metrics.shard_owned.of().set(len(incarnation.shards.epochs))
        metrics.lease_age.of().set(incarnation.lease.age_ms / 1000)
        commit_log = incarnation.commit_log
        metrics.commit_log_waiting_bytes.of().set(commit_log.pending_bytes)
        metrics.commit_log_waiting_transitions.of().set(commit_log.pending_transitions)
        metrics.commit_log_pending_bytes.of().set(
            incarnation.checkpoint.pending_bytes + commit_log.pending_bytes
        )

    def _measure_traffic(self) -> None:
        metrics = self._metrics
        for labels, flow in self._traffic.flows.items():
            metrics.store_requests.of(*labels).value = flow.requests
            metrics.store_items.of(*labels).value = flow.items
            metrics.store_sent_bytes.of(*labels).value = flow.sent_bytes

    async def _measure_queues(self) -> None:
        metrics, now_ms = self._metrics, self._clock.now_ms()
        try:
            sizes = await self._queues.sizes()
        except ClusterError:
            # The rest of the page is needed most when the queues are away.
            sizes = {}
        waiting: Counter[tuple[str, ...]] = Counter()
        held: Counter[tuple[str, ...]] = Counter()
        ages: dict[tuple[str, ...], float] = {}
        for queue, size in sizes.items():
            task_type = task_type_of(queue)
            waiting[task_type, ""] += size.waiting
            held[task_type, ""] += size.held
            if size.oldest_due_ms is not None:
                age = max(0.0, (now_ms - size.oldest_due_ms) / 1000)
                ages[task_type,] = max(age, ages.get((task_type,), 0.0))
        metrics.task_queue_depth.replace(waiting)
        metrics.task_in_progress.replace(held)
        metrics.oldest_pending_age.replace(ages)

    async def watch_lag(self) -> None:
        """Observe how late the event loop is, for good."""
        loop, observe = asyncio.get_running_loop(), self._metrics.event_loop_lag.of().observe
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            observe(max(0.0, loop.time() - due))
