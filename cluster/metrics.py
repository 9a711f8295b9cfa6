"""Every metric: name, labels, buckets. Conductor's names where it has one, so dashboards migrate.

Conductor's timers are summaries with quantiles; here they are histograms of the same name with
`_sum`, `_count` and `_bucket`, which can be added up over nodes. What it measures of machinery
that does not exist here (locks, DAOs, sweepers, archival, webhooks) has no counterpart.

A sample costs a fraction of a microsecond: `family.of(label, …)` looks a child up in a dict and
the child adds to a number. prometheus-client sees the numbers only when they are rendered. All
calls come from the thread of the event loop.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

AUDIT_KINDS = ("child", "effect", "queue", "timer", "walk")
"""What an open workflow may lack: see node/audit.py."""
MEMBER_STATES = ("joining", "serving", "draining")
SHARD_MOVES = ("claimed", "taken_over", "given_up", "lost")
"""How a shard comes to a node (released by its owner; from a dead one) and leaves it (in a planned
move; with the node's log)."""
OTHER = "_other"
"""Stands for the values of users' labels once a family has as many children as it may."""
NO_DOMAIN = "null"
"""Conductor's word for a task without a domain."""

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DURATION_S = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
_DECISION_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25)
_COUNT = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 10000.0)

# Labels whose values users make up: names, versions, whatever they send as a method.
_USERS = frozenset(
    {"taskType", "domain", "workflowName", "version", "ownerApp", "event", "handler", "action"}
    | {"exception", "queueName", "entityName", "name", "method"}
)
_VALUE_CHARS_MAX = 200


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1) -> None:
        self.value += by


class Gauge:
    """A number as it is now."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value

    def inc(self, by: float = 1) -> None:
        self.value += by


class Histogram:
    """How often which size was seen."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Generic[Child]):
    """All children of one metric, one per set of label values, at most `children_max` of them.

    Beyond that the users' labels of a new set read `_other`. Labels with a fixed set of values stay
    as they are, so that a failure is still counted as one.
    """

    def __init__(
        self,
        name: str,
        help: str,
        labels: tuple[str, ...],
        children_max: int,
        new: Callable[[], Child],
    ) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.children: dict[tuple[str, ...], Child] = {}
        self._children_max = children_max
        self._new: Callable[[], Child] = new
        if not labels:
            self.children[()] = new()

    def of(self, *values: str) -> Child:
        """The child of these label values, in the order of `labels`."""
        child = self.children.get(values)
        return child if child is not None else self._add(values)

    def _add(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {values}")
        values = tuple(map(_printable, values))
        if values not in self.children and len(self.children) >= self._children_max:
            values = self._folded(values)
        child = self.children.get(values)
        if child is None:
            child = self.children[values] = self._new()
        return child

    def _folded(self, values: tuple[str, ...]) -> tuple[str, ...]:
        pairs = zip(self.labels, values, strict=True)
        return tuple(OTHER if label in _USERS else value for label, value in pairs)

    def replace(self: "Family[Gauge]", values: Mapping[tuple[str, ...], float]) -> None:
        """Set a whole family of gauges at once; label sets that are not named are gone."""
        self.children.clear()
        for labels, value in values.items():
            self.of(*labels).inc(value)


def _printable(value: str) -> str:
    # One value that has no UTF-8 form would make the whole page fail.
    return value[:_VALUE_CHARS_MAX].encode("utf-8", "replace").decode()


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self, *, children_max: int = 500) -> None:
        self._children_max = children_max
        self._counters: list[Family[Counter]] = []
        self._gauges: list[Family[Gauge]] = []
        self._histograms: list[Family[Histogram]] = []
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        # Tasks
        self.task_queue_wait = histogram(
            "task_queue_wait_seconds",
            "From a task's scheduling to its first hand-over to a worker.",
            _DURATION_S,
            "taskType",
        )
        self.task_execution = histogram(
            "task_execution_seconds",
            "From the start of a task to its end; of its first attempt with includeRetries.",
            _DURATION_S,
            *("taskType", "includeRetries", "status"),
        )
        self.task_queue_depth = gauge(
            "task_queue_depth", "Tasks waiting for a worker.", "taskType", "ownerApp"
        )
        self.task_in_progress = gauge(
            "task_in_progress", "Tasks in workers' hands.", "taskType", "ownerApp"
        )
        self.task_pending_time = gauge(
            "task_pending_time",
            "Milliseconds the task looked at last had been waiting for a worker.",
            *("workflowName", "taskType"),
        )
        self.oldest_pending_age = gauge(
            "oldest_pending_age_seconds",
            "How long ago the oldest waiting task of a type fell due.",
            "taskType",
        )
        self.task_rate_limited = counter(
            "task_rate_limited", "Polls cut short by a rate limit.", "taskType"
        )
        self.task_concurrent_execution_limited = counter(
            "task_concurrent_execution_limited",
            "Polls cut short because all slots of a concurrency limit were taken.",
            "taskType",
        )
        self.task_poll = counter("task_poll", "Polls, empty ones too.", "taskType")
        self.task_poll_count = counter(
            "task_poll_count", "Tasks handed to workers.", "taskType", "domain"
        )
        self.task_poll_error = counter(
            "task_poll_error", "Polls that failed.", "taskType", "domain", "exception"
        )
        self.task_timeout = counter("task_timeout", "Tasks that timed out.", "taskType")
        self.task_response_timeout = counter(
            "task_response_timeout", "Tasks whose worker fell silent.", "taskType"
        )
        self.task_update_conflict = counter(
            "task_update_conflict",
            "Results ignored because the task or its workflow had ended.",
            *("workflowName", "taskType", "taskStatus", "workflowStatus"),
        )
        self.task_update_error = counter(
            "task_update_error", "Results that could not be taken.", "workflowName", "taskType"
        )
        self.task_ack_error = counter(
            "task_ack_error", "Acknowledgements a queue did not take.", "taskType"
        )
        self.task_queue_op_error = counter(
            "task_queue_op_error",
            "Pushes and acknowledgements that failed and are repeated.",
            *("workflowName", "taskType"),
        )
        self.queue_message_repushed = counter(
            "queue_message_repushed", "Tasks pushed again after a loss.", "queueName"
        )
        self.polls_parked = gauge("polls_parked", "Long polls that wait for a task.")
        self.poll_data_dropped = counter(
            "poll_data_dropped", "Poll data given up because too many queues are polled."
        )

        # Workflows
        self.workflow_decision = histogram(
            "workflow_decision_seconds", "One step of the decider.", _DECISION_S
        )
        self.workflow_execution = histogram(
            "workflow_execution_seconds",
            "From a workflow's start to its end.",
            _DURATION_S,
            *("workflowName", "ownerApp"),
        )
        self.workflow_running = gauge(
            "workflow_running",
            "Open workflows of this node, as the last audit counted them.",
            *("workflowName", "ownerApp"),
        )
        self.workflow_start_success = counter(
            "workflow_start_success", "Starts taken.", "workflowName", "version", "ownerApp"
        )
        self.workflow_start_error = counter(
            "workflow_start_error", "Starts refused.", "workflowName", "ownerApp"
        )
        self.workflow_failure = counter(
            "workflow_failure",
            "Workflows that ended other than completed.",
            *("workflowName", "status", "ownerApp"),
        )
        self.workflow_server_error = counter(
            "workflow_server_error", "Defects answered with 500.", "class", "methodName"
        )
        self.tasks_in_workflow = histogram(
            "tasks_in_workflow",
            "Tasks of a workflow at its end.",
            _COUNT,
            *("workflowName", "version"),
        )
        self.external_payload_storage_usage = counter(
            "external_payload_storage_usage",
            "Payloads moved to and from external storage.",
            *("name", "operation", "payloadType"),
        )

        # Events
        self.event_queue_depth = gauge(
            "event_queue_depth", "Messages that wait in an event queue.", "queueType"
        )
        self.event_queue_messages_processed = counter(
            "event_queue_messages_processed", "Messages read.", "queueType", "queueName"
        )
        self.event_queue_messages_handled = counter(
            "event_queue_messages_handled",
            "Messages that a handler acted on.",
            *("queueType", "queueName"),
        )
        self.event_queue_messages_error = counter(
            "event_queue_messages_error",
            "Messages that could not be handled.",
            *("queueType", "queueName"),
        )
        self.event_execution_success = counter(
            "event_execution_success", "Actions done.", "event", "handler", "action"
        )
        self.event_execution_error = counter(
            "event_execution_error",
            "Actions that failed.",
            *("event", "handler", "action", "exception"),
        )
        self.event_action_error = counter(
            "event_action_error",
            "Actions that failed, by what they act on.",
            *("action", "entityName", "event"),
        )

        # Health: what an operator is woken for. The first four should stay 0.
        self.stuck_workflows = gauge(
            "stuck_workflows", "Open workflows without a live cause, as the last audit found them."
        )
        self.quarantined_workflows = gauge(
            "quarantined_workflows", "Workflows whose decision raised and that are left alone."
        )
        self.audit_repairs = counter("audit_repairs", "What the audit had to put right.", "kind")
        for kind in AUDIT_KINDS:
            # There from the start: what should stay 0 must be there to be watched.
            self.audit_repairs.of(kind)
        self.queue_losses = counter(
            "queue_losses", "Times this node found that the queues had lost what they held."
        )
        self.requeued_workflows = counter(
            "requeued_workflows", "Open workflows whose tasks were told to the queues again."
        )
        self.system_tasks_under_way = gauge(
            "system_tasks_under_way", "System tasks that this node carries out.", "task_type"
        )
        self.system_task_seconds = histogram(
            "system_task_seconds",
            "How long they took, by what they came to; dropped: nobody wanted them any more.",
            _DURATION_S,
            *("task_type", "outcome"),
        )
        self.tasks_unheard = counter(
            "tasks_unheard", "Hand-outs of which a queue heard nothing: their owners were asked."
        )
        self.lease_lost = counter("lease_lost", "Leases that ran out under their holder.")
        self.shard_owned = gauge("shard_owned", "Shards this node owns.")
        self.shard_count = gauge("shard_count", "Shards there are in the cluster.")
        self.shard_takeover = histogram(
            "shard_takeover_seconds", "From seal to service of a shard.", _DURATION_S
        )
        self.timer_lateness = histogram(
            "timer_lateness_seconds", "From a timer's due time to its event.", _LATENCY_S
        )
        self.schedule_starts = counter(
            "schedule_starts", "Starts of schedules; state: EXECUTED, FAILED.", "state"
        )
        self.schedule_lateness = histogram(
            "schedule_lateness_seconds",
            "From an instant of a schedule to the decision to start.",
            _DURATION_S,
        )
        self.index_lag = gauge("index_lag_seconds", "How far search is behind the commit log.")
        self.outbox_pending = gauge("outbox_pending", "Messages between shards not acknowledged.")
        self.event_loop_lag = histogram(
            "event_loop_lag_seconds", "By how much the event loop ran a timer late.", _LATENCY_S
        )

        # Cluster: who is there, who serves what, and what goes from node to node
        self.node_ready = gauge("node_ready", "1 while this node says that it is ready.")
        self.cluster_members = gauge(
            "cluster_members", "Nodes that this node sees, itself included.", "state"
        )
        self.lease_age = gauge(
            "lease_age_seconds", "Since this node sent the last renewal that was acknowledged."
        )
        self.clock_offset = gauge(
            "clock_offset_seconds", "How far this node's clock is ahead of the queue store's."
        )
        self.shard_moves = counter(
            "shard_moves", "Shards that came to this node or left it.", "kind"
        )
        for kind in SHARD_MOVES:
            self.shard_moves.of(kind)
        self.link_calls = counter(
            "link_calls", "Calls to other nodes, by how they ended.", "operation", "outcome"
        )
        self.link_call = histogram(
            "link_call_seconds", "From a call to another node to its answer.", _LATENCY_S
        )
        self.link_frames = counter("link_frames", "Frames sent to other nodes.")
        self.link_bytes = counter("link_bytes", "Bytes sent to other nodes.")
        self.link_pending = gauge("link_pending", "Calls to other nodes that have no answer yet.")
        self.link_messages = histogram(
            "link_messages_per_frame", "Calls or answers that travelled together.", _COUNT
        )
        self.link_lost = counter("link_lost", "Links to other nodes that broke or did not come up.")
        self.request_repeats = counter(
            "request_repeats",
            "Requests tried again because their shard was in motion or its owner did not answer.",
            "operation",
        )
        self.hand_over_notes_dropped = counter(
            "hand_over_notes_dropped", "Hand-overs of tasks that their owner could not be told of."
        )
        self.link_refused = counter(
            "link_refused", "Links that were asked for without the token of the cluster."
        )

        # Durability
        self.commit_log_entries = counter("commit_log_entries", "Entries appended.")
        self.commit_log_bytes = counter("commit_log_bytes", "Bytes appended.")
        self.commit_log_transitions = histogram(
            "commit_log_transitions_per_entry", "Size of the group of one commit.", _COUNT
        )
        self.commit_log_append = histogram(
            "commit_log_append_seconds", "From append to durable and unfenced.", _LATENCY_S
        )
        self.commit_log_pending_bytes = gauge(
            "commit_log_pending_bytes", "Bytes of the log that no checkpoint covers."
        )
        self.commit_log_waiting_bytes = gauge(
            "commit_log_waiting_bytes", "Bytes that wait for their append."
        )
        self.commit_log_waiting_transitions = gauge(
            "commit_log_waiting_transitions", "Transitions that wait for their append."
        )
        self.checkpoint_duration = histogram(
            "checkpoint_seconds", "Write-behind of changed rows, one round.", _LATENCY_S
        )
        self.checkpoint_rows = counter("checkpoint_rows", "Rows written behind.")
        self.checkpoint_bytes = counter("checkpoint_bytes", "Bytes written behind.")

        # Servers behind the stores: cassandra by statement and table, redis by script and
        # operation. Many rows or operations go in one request.
        self.store_requests = counter("store_requests", "Requests sent.", "server", "kind")
        self.store_items = counter("store_items", "Rows or operations sent.", "server", "kind")
        self.store_sent_bytes = counter(
            "store_sent_bytes", "Bytes of the values sent, without frames.", "server", "kind"
        )

        # HTTP; `route` is the pattern, never the path.
        self.http_requests = counter(
            "http_requests", "Requests answered.", "method", "route", "status"
        )
        self.http_request_duration = histogram(
            "http_request_seconds", "From a request's head to its answer.", _LATENCY_S, "route"
        )
        self.requests_refused = counter(
            "requests_refused",
            "Requests answered with 429 at the door, and polls with nothing, and why.",
            *("kind", "reason"),
        )
        self.starts_under_way = gauge(
            "starts_under_way", "Starts let in and not durable yet; one per 32 items of a bulk."
        )
        self.admission_limit = gauge(
            "admission_limit", "How many may be under way before starts get 429."
        )
        self.http_items = counter(
            "http_items",
            "Items of requests that hold many, by what was answered for each.",
            *("route", "status"),
        )
        self.bulk_jobs_open = gauge("bulk_jobs_open", "Bulk jobs of this node that have not ended.")
        self.bulk_job_workflows = counter(
            "bulk_job_workflows",
            "Workflows that bulk jobs came to, by what became of them.",
            *("operation", "outcome"),
        )

        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Exposition(self._counters, self._gauges, self._histograms))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format; may take 0.1 s, so best run in a thread."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, *labels: str) -> Family[Counter]:
        family = Family(name, help, labels, self._children_max, Counter)
        self._counters.append(family)
        return family

    def _gauge(self, name: str, help: str, *labels: str) -> Family[Gauge]:
        family = Family(name, help, labels, self._children_max, Gauge)
        self._gauges.append(family)
        return family

    def _histogram(
        self, name: str, help: str, bounds: Sequence[float], *labels: str
    ) -> Family[Histogram]:
        family = Family(name, help, labels, self._children_max, partial(Histogram, bounds))
        self._histograms.append(family)
        return family


class _Exposition(Collector):
    """Shows the families to prometheus-client when they are rendered."""

    def __init__(
        self,
        counters: Sequence[Family[Counter]],
        gauges: Sequence[Family[Gauge]],
        histograms: Sequence[Family[Histogram]],
    ) -> None:
        self._counters = counters
        self._gauges = gauges
        self._histograms = histograms

    def collect(self) -> Iterator[Metric]:
        # Each list() copies at one go, so that another thread may render.
        for counters in self._counters:
            metric = CounterMetricFamily(counters.name, counters.help, labels=counters.labels)
            for labels, counter in list(counters.children.items()):
                metric.add_metric(labels, counter.value)
            yield metric
        for gauges in self._gauges:
            level = GaugeMetricFamily(gauges.name, gauges.help, labels=gauges.labels)
            for labels, gauge in list(gauges.children.items()):
                level.add_metric(labels, gauge.value)
            yield level
        for family in self._histograms:
            shape = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for labels, histogram in list(family.children.items()):
                bounds = [*map(str, histogram.bounds), "+Inf"]
                counts = accumulate(list(histogram.counts))
                shape.add_metric(labels, list(zip(bounds, counts, strict=True)), histogram.sum)
            yield shape
