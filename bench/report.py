"""One HTML page with plots of a run, from what was recorded or from Prometheus.

    python -m bench.report RECORDING.jsonl [...] [--out build/bench/report.html]
    python -m bench.report --prometheus http://prometheus:9090 [--minutes 30]

Each recording is a section of the page. The page needs nothing else: no network, no other file.
"""

from __future__ import annotations

import argparse
import html
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.plots import Band, Chart, Line, Points, clock, figure, number
from bench.recorded import Recorded, from_prometheus, read

OUT = Path("build/bench/report.html")
_PAGE = Path(__file__).parent / "report_page.html"
_PERCENTILES = ("p50", "p95", "p99")
_START_ROUTES = {"start": "/api/workflow", "bulk start": "/api/workflow/bulk/start"}
_LINES_MAX = 7
_GAP_S = 5


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes a page of a recorded run.")
    parser.add_argument("recordings", nargs="*", type=Path, metavar="RECORDING")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--title", default="Load test of Podium")
    parser.add_argument("--prometheus", metavar="URL", help="instead of recordings")
    parser.add_argument("--minutes", type=float, default=30, help="back from --end")
    parser.add_argument("--end", type=float, default=time.time(), help="Unix seconds; now")
    options = parser.parse_args()
    if options.prometheus:
        begin_s = options.end - 60 * options.minutes
        runs = [from_prometheus(options.prometheus, begin_s, options.end)]
    elif options.recordings:
        runs = [read(path) for path in options.recordings]
    else:
        parser.error("which RECORDING? (or --prometheus URL)")
    write(runs, options.out, title=options.title)
    print(f"wrote {options.out}")
    return 0


def write(runs: Sequence[Recorded], out: Path, *, title: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(min(run.span[0] for run in runs)))
    links = "".join(f'<a href="#{_anchor(run)}">{_title(run)}</a>' for run in runs)
    page = _PAGE.read_text(encoding="utf-8")
    for place, text in {
        "@TITLE@": html.escape(title),
        "@WHEN@": html.escape(began),
        "@LINKS@": links if len(runs) > 1 else "",
        "@SECTIONS@": "".join(map(section, runs)),
    }.items():
        page = page.replace(place, text)
    out.write_text(page, encoding="utf-8")


def section(run: Recorded) -> str:
    first, last = run.span
    bands = _bands(run)
    charts = "".join(
        figure(_with(chart, bands), first=first, last=last) for chart in charts_of(run)
    )
    about = html.escape(str(run.about.get("about", "")))
    return (
        f'<section id="{_anchor(run)}"><h2>{_title(run)}</h2><p class="about">{about}</p>'
        f"{_verdicts(run)}{_tiles(run)}{_windows(run)}{_parts(bands, first)}"
        f'<div class="charts">{charts}</div></section>'
    )


def charts_of(run: Recorded) -> list[Chart]:
    """What an SRE asks first comes first."""
    edges, wide = run.edges(), run.edges(bins=2)
    return [
        _rates(run, edges),
        _start_latency(run, edges),
        _cpu_per_workflow(run, wide),
        _cores(run, edges),
        _other_latency(run),
        _memory(run),
        _queues(run, edges),
        _health(run, edges),
        _store_requests(run, wide, "cassandra", "Cassandra requests per workflow"),
        _store_requests(run, wide, "redis", "Redis requests per workflow"),
    ]


def _rates(run: Recorded, edges: Sequence[float]) -> Chart:
    def per_second(growth: Sequence[float]) -> Points:
        pairs = zip(edges[1:], growth, strict=True)
        return [(edge, amount / (edges[1] - edges[0])) for edge, amount in pairs]

    lines = [
        Line("started", per_second(run.started(edges))),
        Line("ended", per_second(run.ended(edges))),
    ]
    refused = [key for key in run.keys("http_requests_total", "http_items_total") if '"429"' in key]
    if any(growth := run.growth(*refused, edges=edges)):
        lines.append(Line("refused (429)", per_second(growth)))
    return Chart("Workflows", "per second", lines)


def _start_latency(run: Recorded, edges: Sequence[float]) -> Chart:
    title, unit = "Latency of a start", "ms"
    seen = [Line(p, _broken(run.locust.get(f"start/{p}", []))) for p in _PERCENTILES]
    if any(line.points for line in seen):
        return Chart(title, unit, seen, "As producers see it, each second.", is_log=True)
    route = _START_ROUTES["start"]
    quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    lines = [
        Line(name, run.histogram_quantile(route, quantile, edges))
        for name, quantile in quantiles.items()
    ]
    return Chart(title, unit, lines, "From the nodes' histograms.", is_log=True)


def _other_latency(run: Recorded) -> Chart:
    names = {key.rpartition("/")[0] for key in run.locust if key.endswith("/p99")}
    # A poll waits for work: how long says nothing about the server. Refusals are quick.
    names = {
        name for name in names if not name.startswith(("poll", "exchange")) and "(" not in name
    }
    busiest = sorted(names, key=lambda name: -sum(v for _, v in run.locust[f"{name}/n"]))
    lines = [Line(name, _broken(run.locust[f"{name}/p99"])) for name in busiest[:6]]
    note = "The most frequent ones, as Locust sees them, each second."
    return Chart("99th percentile by request", "ms", lines, note, is_log=True)


def _broken(points: Points) -> Points:
    """With a gap where there was no request for a while, instead of a line across it."""
    found: Points = []
    for at, value in points:
        if found and at - found[-1][0] > _GAP_S:
            found.append((at, math.nan))
        found.append((at, value))
    return found


def _cpu_per_workflow(run: Recorded, edges: Sequence[float]) -> Chart:
    lines = [
        Line(name, run.per_workflow([1000 * cpu for cpu in run.cpu(name, edges)], edges))
        for name in _by_cpu(run)
    ]
    # What an interval without ended workflows costs would make all others flat.
    note = "By process, one on top of the other; gaps where hardly any ended."
    return Chart("CPU per workflow", "ms", lines, note, is_stacked=True)


def _cores(run: Recorded, edges: Sequence[float]) -> Chart:
    step = edges[1] - edges[0] if len(edges) > 1 else 1.0
    lines = [
        Line(
            name,
            [(at, cpu / step) for at, cpu in zip(edges[1:], run.cpu(name, edges), strict=True)],
        )
        for name in _by_cpu(run)
    ]
    return Chart("CPU", "cores", lines, is_stacked=True)


def _memory(run: Recorded) -> Chart:
    lines = [Line(name, run.memory_mib[name]) for name in _by_cpu(run)]
    return Chart("Memory", "MiB", lines)


def _queues(run: Recorded, edges: Sequence[float]) -> Chart:
    def level(key: str) -> Points:
        return list(zip(edges, run.total(key, edges=edges), strict=True))

    lines = [
        Line("tasks waiting", level("task_queue_depth")),
        Line("in workers' hands", level("task_in_progress")),
    ]
    return Chart("Queues", "tasks", lines)


def _health(run: Recorded, edges: Sequence[float]) -> Chart:
    def mean_ms(name: str) -> Points:
        sums = run.growth(f"{name}_sum", edges=edges)
        counts = run.growth(f"{name}_count", edges=edges)
        return [
            (edge, 1000 * total / count if count else math.nan)
            for edge, total, count in zip(edges[1:], sums, counts, strict=True)
        ]

    lines = [
        Line("commit (append to the log)", mean_ms("commit_log_append_seconds")),
        Line("lag of the event loop", mean_ms("event_loop_lag_seconds")),
    ]
    return Chart("What starts wait for in a node", "ms", lines, "Means over all nodes.")


def _store_requests(run: Recorded, edges: Sequence[float], server: str, title: str) -> Chart:
    keys = [key for key in run.keys("store_requests_total") if f'server="{server}"' in key]
    costs = {key: run.growth(key, edges=edges) for key in keys}
    busiest = sorted(keys, key=lambda key: -sum(costs[key]))
    lines = [Line(_kind(key), run.per_workflow(costs[key], edges)) for key in busiest[:_LINES_MAX]]
    if rest := busiest[_LINES_MAX:]:
        sums = [sum(amounts) for amounts in zip(*(costs[key] for key in rest), strict=True)]
        lines.append(Line("all others", run.per_workflow(sums, edges)))
    if lines:
        note = "One on top of the other, the most frequent kinds first. Many rows go in one."
        return Chart(title, "requests", lines, note, is_stacked=True)
    return Chart(title, "requests", [], "The nodes sent none (embedded), or do not count them.")


def _kind(key: str) -> str:
    found = re.search(r'kind="([^"]*)"', key)
    return found[1] if found else key


def _by_cpu(run: Recorded) -> list[str]:
    """Processes, those that used most first."""
    return sorted(run.cpu_s, key=lambda name: run.cpu_s[name][0][1] - run.cpu_s[name][-1][1])


def _bands(run: Recorded) -> list[Band]:
    ends = [*(at for at, _ in run.marks[1:]), run.span[1]]
    pairs = zip(run.marks, ends, strict=True)
    return [Band(at, end, text) for (at, text), end in pairs if text]


def _with(chart: Chart, bands: Sequence[Band]) -> Chart:
    fields = {name: getattr(chart, name) for name in chart.__dataclass_fields__}
    return Chart(**fields | {"bands": bands})


def _verdicts(run: Recorded) -> str:
    parts = []
    for account in run.accounts:
        good = not account["problems"]
        mark = "✓ all accounted for" if good else "✗ not as it should be"
        load = html.escape(account.get("load", ""))
        parts.append(
            f'<p class="verdict {"good" if good else "bad"}"><strong>{mark}</strong> {load}: '
            f"{html.escape(account['text'])}</p>"
        )
    return "".join(parts)


def _tiles(run: Recorded) -> str:
    edges = run.edges()
    if len(edges) < 2:
        return ""
    step = edges[1] - edges[0]
    per_second = [count / step for count in run.ended(edges)]
    ended = sum(run.ended(edges))
    cpu_s = sum(points[-1][1] - points[0][1] for points in run.cpu_s.values() if points)
    cpu_ms = 1000 * cpu_s / ended if ended else math.nan
    memory = sum(max(v for _, v in points) for points in run.memory_mib.values() if points)
    p50, p99 = (_median(run.locust.get(f"start/{p}", [])) for p in ("p50", "p99"))
    tiles = {
        "workflows ended": number(ended),
        "ended per second, at most": number(max(per_second)),
        "CPU per workflow, all processes": f"{number(cpu_ms)} ms",
        "start p50 / p99, median of the seconds": f"{number(p50)} / {number(p99)} ms",
        "memory, sum of the most of each": f"{number(memory)} MiB",
        "length": clock(run.span[1] - run.span[0]),
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    return f'<dl class="tiles">{cells}</dl>'


def _median(points: Points) -> float:
    return statistics.median(value for _, value in points) if points else math.nan


def _windows(run: Recorded) -> str:
    if not run.windows:
        return ""
    names = list(dict.fromkeys(name for row in run.windows for name in row["cpu_ms"]))
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "scenario": lambda row: html.escape(row["scenario"]),
        "workflows/s": lambda row: number(row["wf_per_s"]),
        "CPU ms/workflow": lambda row: number(sum(row["cpu_ms"].values())),
        **{
            f"of it {name}": lambda row, name=name: number(row["cpu_ms"].get(name, math.nan))
            for name in names
            if len(names) > 1
        },
        "start p50 ms": lambda row: number(row["start_ms"]["p50"]),
        "start p99 ms": lambda row: number(row["start_ms"]["p99"]),
        "whole p50 ms": lambda row: number(row["e2e_ms"]["p50"]),
        "verified": lambda row: f"{row['checked']:,} ended" if row["is_sound"] else "NOT SOUND",
    }
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{show(row)}</td>' for show in columns.values())}</tr>"
        for row in run.windows
    )
    return (
        '<div class="scroll"><table class="windows"><caption>Windows of rest_load.py: single '
        "requests, as fast as it goes, every workflow looked up at the end</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _parts(bands: Sequence[Band], first: float) -> str:
    if not bands:
        return ""
    items = "".join(
        f"<li>{clock(band.begin - first)}–{clock(band.end - first)} {html.escape(band.name)}</li>"
        for band in bands
    )
    return f'<ol class="parts" aria-label="Parts of the run">{items}</ol>'


def _title(run: Recorded) -> str:
    return html.escape(str(run.about.get("title", run.name)))


def _anchor(run: Recorded) -> str:
    return re.sub(r"\W+", "-", run.name)


if __name__ == "__main__":
    sys.exit(main())
