"""Metrics: Conductor's names on the page, and no more children than there may be."""

from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import OTHER, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_the_page_shows_what_was_counted() -> None:
    metrics = Metrics()
    metrics.task_poll.of("mail").inc()
    metrics.task_poll.of("mail").inc(2)
    metrics.shard_owned.of().set(256)
    metrics.http_request_duration.of("/api/tasks").observe(0.005)
    metrics.http_request_duration.of("/api/tasks").observe(99)
    page = samples(metrics)
    route = ("route", "/api/tasks")
    assert page["task_poll_total", (("taskType", "mail"),)] == 3
    assert page["shard_owned", ()] == 256
    kind = ("kind", "timer")
    assert page["audit_repairs_total", (kind,)] == 0, "what should stay 0 is there to be watched"
    assert page["http_request_seconds_bucket", (("le", "0.0025"), route)] == 0
    assert page["http_request_seconds_bucket", (("le", "0.005"), route)] == 1
    assert page["http_request_seconds_bucket", (("le", "10.0"), route)] == 1
    assert page["http_request_seconds_bucket", (("le", "+Inf"), route)] == 2
    assert page["http_request_seconds_count", (route,)] == 2
    assert page["http_request_seconds_sum", (route,)] == 99.005
    assert ("process_cpu_seconds_total", ()) in page


def test_the_names_dashboards_know_are_kept() -> None:
    """As the 3.32.3 server writes them; its quantiles are buckets here."""
    names = {
        line.split()[2]: line.split()[3]
        for line in Metrics().render().decode().splitlines()
        if line.startswith("# TYPE")
    }
    for timer in ("task_queue_wait", "task_execution", "workflow_decision", "workflow_execution"):
        assert names[f"{timer}_seconds"] == "histogram"
    for gauge in ("task_queue_depth", "task_in_progress", "workflow_running", "task_pending_time"):
        assert names[gauge] == "gauge"
    for counter in (
        *("task_poll", "task_poll_count", "task_timeout", "task_response_timeout"),
        *("workflow_start_success", "workflow_failure", "workflow_server_error"),
        *("task_update_conflict", "event_execution_success", "queue_message_repushed"),
    ):
        assert names[f"{counter}_total"] == "counter"
    ours = {"shard_owned", "shard_takeover_seconds", "lease_lost_total", "stuck_workflows"}
    ours |= {"timer_lateness_seconds", "index_lag_seconds", "outbox_pending"}
    ours |= {"oldest_pending_age_seconds", "event_loop_lag_seconds", "quarantined_workflows"}
    ours |= {"audit_repairs_total", "http_requests_total", "http_request_seconds"}
    ours |= {"commit_log_entries_total", "commit_log_bytes_total", "commit_log_append_seconds"}
    ours |= {"commit_log_transitions_per_entry", "checkpoint_seconds", "checkpoint_rows_total"}
    assert ours <= names.keys()


def test_users_labels_fold_when_there_are_too_many() -> None:
    metrics = Metrics(children_max=3)
    for n in range(1000):
        metrics.task_poll.of(f"type{n}").inc()
        metrics.task_execution.of(f"type{n}", "true", "FAILED" if n % 2 else "COMPLETED").observe(1)
        metrics.http_requests.of(f"M{n}", "/x", "200").inc()
    assert metrics.task_poll.of("type1").value == 1
    assert metrics.task_poll.of("type999") is metrics.task_poll.of(OTHER)
    assert metrics.task_poll.of(OTHER).value == 997
    assert len(metrics.task_poll.children) == 4
    assert len(metrics.task_execution.children) == 5
    page = samples(metrics)
    other = (("includeRetries", "true"), ("status", "FAILED"), ("taskType", OTHER))
    assert page["task_execution_seconds_count", other] == 499
    assert (
        page["http_requests_total", (("method", OTHER), ("route", "/x"), ("status", "200"))] == 997
    )


def test_gauges_are_replaced_as_a_whole() -> None:
    metrics = Metrics(children_max=2)
    metrics.task_queue_depth.replace({("a", ""): 1, ("b", ""): 2, ("c", ""): 3, ("d", ""): 4})
    assert metrics.task_queue_depth.of(OTHER, OTHER).value == 7
    metrics.task_queue_depth.replace({("e", ""): 5})
    assert [child.value for child in metrics.task_queue_depth.children.values()] == [5]


def test_no_name_breaks_the_page() -> None:
    metrics = Metrics()
    metrics.task_poll.of("\ud800").inc()
    metrics.task_poll.of('"\n\\').inc()
    metrics.task_poll.of("x" * 10_000).inc()
    metrics.task_poll.of("x" * 10_000).inc()
    page = samples(metrics)
    assert page["task_poll_total", (("taskType", '"\n\\'),)] == 1
    assert page["task_poll_total", (("taskType", "?"),)] == 1
    assert page["task_poll_total", (("taskType", "x" * 200),)] == 2
