"""What is recorded of a run, and the page that is made of it."""

import json
import math
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from bench.plots import Chart, Line, clock, figure, number
from bench.recorded import Recorded, from_prometheus, read
from bench.recorder import sums
from bench.report import charts_of, write

PAGE = """
# HELP http_requests_total Requests answered.
http_requests_total{method="GET",route="/a",status="200"} 3.0
http_requests_total{method="POST",route="/a",status="200"} 4.0
http_requests_total{method="POST",route="/a",status="429"} 1.0
task_queue_depth{taskType="a \\"b\\"",ownerApp=""} 5.0
task_queue_depth{taskType="c",ownerApp=""} 7.0
store_requests_total{server="cassandra",kind="append log"} 9.0
store_requests_total{kind="pop",server="redis"} 8.0
python_gc_collections_total{generation="0"} 99.0
"""


def recorded(tmp_path: Path, *lines: dict[str, Any]) -> Recorded:
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read(path)


def node(at_s: float, name: str = "n1", /, **values: float) -> dict[str, Any]:
    return {"t": at_s, "source": "node", "node": name, "values": values}


def test_a_page_of_metrics_is_summed_up_over_what_nobody_plots() -> None:
    assert sums(PAGE) == {
        'http_requests_total{status="200"}': 7,
        'http_requests_total{status="429"}': 1,
        "task_queue_depth": 12,
        'store_requests_total{server="cassandra",kind="append log"}': 9,
        'store_requests_total{server="redis",kind="pop"}': 8,
    }


def test_a_counter_grows_from_its_first_value(tmp_path: Path) -> None:
    run = recorded(tmp_path, node(0, a=100), node(1, a=110), node(2), node(3, a=130))
    assert run.growth("a", edges=[0, 1, 2, 3]) == [10, 0, 20]


def test_a_counter_that_appears_later_grows_from_0(tmp_path: Path) -> None:
    run = recorded(tmp_path, node(0, a=1), node(1, a=1, b=5), node(2, b=7))
    assert run.growth("b", edges=[0, 1, 2]) == [5, 2]


def test_a_process_that_was_started_again_counts_from_0(tmp_path: Path) -> None:
    run = recorded(tmp_path, node(0, a=100), node(1, a=110), node(2, a=4))
    assert run.growth("a", edges=[0, 1, 2]) == [10, 4]


def test_nodes_are_added_up(tmp_path: Path) -> None:
    lines = [node(0, a=1), node(0, "n2", a=2), node(1, a=5), node(1, "n2", a=3)]
    run = recorded(tmp_path, *lines)
    assert run.growth("a", edges=[0, 1]) == [5]
    assert run.total("a", edges=[0, 1]) == [3, 8]


def test_a_node_that_went_silent_has_nothing_in_its_queues(tmp_path: Path) -> None:
    run = recorded(tmp_path, node(0, a=1), node(0, "n2", a=2), node(20, "n2"))
    assert run.total("a", edges=[0, 3, 10]) == [3, 3, 2]


def test_there_is_no_cost_per_workflow_where_none_ended(tmp_path: Path) -> None:
    ended = "workflow_execution_seconds_count"
    run = recorded(tmp_path, node(0, **{ended: 0}), node(10, **{ended: 100}), node(20))
    (_, first), (_, second) = run.per_workflow([50, 50], [0, 10, 20])
    assert first == 0.5
    assert math.isnan(second)


def test_percentiles_come_out_of_buckets(tmp_path: Path) -> None:
    def bucket(le: str) -> str:
        return f'http_request_seconds_bucket{{route="/api/workflow",le="{le}"}}'

    before = {bucket(le): 0.0 for le in ("0.1", "0.2", "+Inf")}
    after = {bucket("0.1"): 50.0, bucket("0.2"): 100.0, bucket("+Inf"): 100.0}
    run = recorded(tmp_path, node(0, **before), node(10, **after))
    ((_, median),) = run.histogram_quantile("/api/workflow", 0.5, [0, 10])
    ((_, high),) = run.histogram_quantile("/api/workflow", 0.9, [0, 10])
    assert (round(median), round(high)) == (100, 180)


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(node(0, a=1)) + '\n{"t": 1, "sou')
    assert read(path).metrics["n1", "a"] == [(0, 1)]


@pytest.mark.parametrize(("log", "stacked"), [(False, False), (True, False), (False, True)])
def test_a_chart_is_well_formed(log: bool, stacked: bool) -> None:
    points = [(0.0, 0.0), (1.0, 3.0), (2.0, math.nan), (3.0, 12.5)]
    lines = [Line("<a>", points), Line("b & c", points)]
    chart = Chart("x < y", "ms", lines, is_log=log, is_stacked=stacked)
    root = ET.fromstring(figure(chart, first=0, last=3))
    assert root.find("svg") is not None
    assert "x < y" in "".join(root.itertext())


def test_a_chart_without_values_says_why() -> None:
    text = figure(Chart("Cassandra", "requests", [], "none are counted"), first=0, last=1)
    assert "none are counted" in text
    assert "<svg" not in text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run = recorded(
        tmp_path,
        {"t": 0, "source": "mark", "text": "steady"},
        node(0, workflow_execution_seconds_count=0),
        {"t": 1, "source": "process", "name": "n1", "cpu_s": 1, "memory_mib": 70},
        {"t": 1, "source": "locust", "values": {"start/n": 3, "start/p50": 4, "start/p99": 9}},
        {"t": 9, "source": "process", "name": "n1", "cpu_s": 2, "memory_mib": 71},
        node(9, workflow_execution_seconds_count=1000),
        {"t": 9, "source": "account", "text": "1 <lost>", "problems": {"lost": 1}},
    )
    out = tmp_path / "page.html"
    write([run], out, title="A & B")
    page = out.read_text()
    assert "A &amp; B" in page
    assert "1 &lt;lost&gt;" in page
    assert "@" not in re.sub(r"@media[^{]*", "", page)
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert page.count("<figure>") == len(charts_of(run))


@contextmanager
def prometheus(series: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Answers range queries by what they ask for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            found = next((rows for part, rows in series.items() if part in query), [])
            body = json.dumps({"data": {"result": found}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_prometheus_stands_in_for_the_recorder() -> None:
    values = [[0, "0"], [10, "40"]]
    cassandra = {"instance": "a:1", "server": "cassandra", "kind": "read"}
    with prometheus(
        {
            "(workflow_execution_seconds_count)": [
                {"metric": {"instance": "a:1"}, "values": values}
            ],
            "(process_cpu_seconds_total)": [{"metric": {"instance": "a:1"}, "values": values}],
            "(store_requests_total)": [{"metric": cassandra, "values": values}],
        }
    ) as url:
        run = from_prometheus(url, 0, 10)
    assert run.ended([0, 10]) == [40]
    assert run.cpu("a:1", [0, 10]) == [40]
    key = 'store_requests_total{server="cassandra",kind="read"}'
    assert run.growth(key, edges=[0, 10]) == [40]
    (chart,) = (chart for chart in charts_of(run) if chart.title.startswith("Cassandra"))
    assert [line.name for line in chart.lines] == ["read"]


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0, 0.001234, 0.5, 12.345, 1234.5, math.nan)] == [
        *("0", "0.001", "0.5", "12.3", "1,234", "–")
    ]
    assert [clock(seconds) for seconds in (5, 65, 3665)] == ["0:05", "1:05", "1:01:05"]
