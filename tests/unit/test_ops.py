"""What stands in ops/ and docker-compose.cluster.yml fits together, and fits the code."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cluster.cli import main
from cluster.metrics import Family, Metrics
from cluster.settings import NAMES, PREFIX, load_settings
from cluster.urls import CassandraUrl, RedisUrl, parse_queue_url, parse_store_url
from tests.support.promql import ALERTS, DASHBOARDS, alerts, expressions, missing_from

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.cluster.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PODIUM = {name: service for name, service in SERVICES.items() if "build" in service}
NODES = {name for name, service in PODIUM.items() if service["command"] == ["serve"]}
VERSIONS: dict[str, str] = tomllib.loads((OPS / "versions.toml").read_text())
DOCKERFILE = (OPS / "Dockerfile").read_text()
RUNBOOK = (OPS / "runbook.md").read_text()


def test_the_cluster_is_what_it_should_be() -> None:
    images = [service["image"].partition(":")[0] for service in SERVICES.values()]
    assert images.count("cassandra") == 3
    assert images.count("redis") == 1
    assert len(NODES) >= 3
    assert {"haproxy", "prom/prometheus", "grafana/grafana"} <= set(images)


def test_every_image_is_of_the_version_that_is_named_once() -> None:
    for name, service in SERVICES.items():
        if name not in PODIUM:
            image, _, tag = service["image"].rpartition(":")
            assert tag == VERSIONS[image.rpartition("/")[2]], name
    assert re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE) == [VERSIONS["python"]]
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:${PYTHON}"}


def test_the_image_is_built_in_stages_and_runs_without_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) > 1
    last = stages[-1]
    assert re.search(r"^USER podium$", last, re.MULTILINE)
    assert "pip install" not in last
    assert re.search(r"^HEALTHCHECK (?!NONE)", last, re.MULTILINE)
    assert re.search(r"^COPY --from=build ", last, re.MULTILINE)


def test_the_image_gets_what_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def environment(name: str) -> dict[str, str]:
    """What a service of ours is started with; what the user has to set is there."""
    given = PODIUM[name]["environment"]
    return {key: re.sub(r"\$\{\w+:\?[^}]*\}", "given", value) for key, value in given.items()}


@pytest.mark.parametrize("name", sorted(PODIUM))
def test_every_name_in_the_environment_is_a_setting(name: str) -> None:
    for variable in environment(name):
        assert variable.startswith(PREFIX)
        assert variable.removeprefix(PREFIX).lower() in NAMES
    load_settings(environ=environment(name))


def test_every_setting_of_the_image_is_one() -> None:
    names = re.findall(rf"\b{PREFIX}(\w+)=", DOCKERFILE)
    assert names
    assert {name.lower() for name in names} <= set(NAMES)


def commands() -> Iterator[list[str]]:
    for service in PODIUM.values():
        yield service["command"]
    for page in (*(ROOT / "docs").glob("*.md"), OPS / "runbook.md", ROOT / "README.md"):
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.partition("#")[0].split()
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]
                if words and words[0].rpartition("/")[2] == "podium":
                    yield words[1:]


def parse(command: click.Command, words: list[str]) -> None:
    """Read a command line as the command would, without doing anything."""
    with command.make_context(command.name, list(words)) as context:
        if isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            _, inner, rest = command.resolve_command(context, rest)
            assert inner is not None
            parse(inner, rest)


@pytest.mark.parametrize("words", sorted(commands()), ids=" ".join)
def test_every_command_in_compose_and_in_the_docs_is_one(words: list[str]) -> None:
    parse(main, words)


def test_the_nodes_know_their_stores_and_each_other() -> None:
    links = set()
    for name in NODES:
        settings = load_settings(environ=environment(name))
        store, queue = parse_store_url(settings.store_url), parse_queue_url(settings.queue_url)
        assert isinstance(store, CassandraUrl)
        assert isinstance(queue, RedisUrl)
        assert {host.name for host in store.hosts} <= set(SERVICES)
        assert queue.host.name in SERVICES
        # Whose shards they were is told by the name; others reach it under its service's name.
        assert settings.node_id == settings.link_host == name
        assert settings.link_port > 0
        links.add(settings.link_token)
        data = [volume.partition(":")[2] for volume in PODIUM[name]["volumes"]]
        assert data == ["/var/lib/podium"]
    assert links == {"given"}


def test_the_balancer_spreads_over_all_nodes_that_are_ready() -> None:
    text = (OPS / "haproxy" / "haproxy.cfg").read_text()
    servers = dict(re.findall(r"^\s+server (\S+) (\S+)$", text, re.MULTILINE))
    assert servers == {name: f"{name}:8080" for name in NODES}
    assert "option httpchk GET /health/ready" in text


def test_prometheus_asks_all_nodes_where_to_look() -> None:
    config = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "podium"]
    urls = {asked["url"] for asked in job["http_sd_configs"]}
    assert urls == {f"http://{name}:8080/cluster/targets" for name in NODES}
    assert config["rule_files"] == [ALERTS.name]


def test_what_is_mounted_and_depended_on_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), volume
            else:
                assert source in COMPOSE["volumes"]
        assert set(service.get("depends_on", ())) <= set(SERVICES)
    provider = yaml.safe_load((OPS / "grafana/provisioning/dashboards/podium.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert f"./ops/grafana/dashboards:{path}:ro" in SERVICES["grafana"]["volumes"]


def test_there_is_a_dashboard_for_traffic_queues_and_shards() -> None:
    assert {path.stem for path in DASHBOARDS.glob("*.json")} == {"traffic", "queues", "shards"}
    source = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    for path in DASHBOARDS.glob("*.json"):
        named = set(
            re.findall(
                r'"datasource": \{\s*"type": "prometheus",\s*"uid": "(\w+)"', path.read_text()
            )
        )
        assert named == {uid}


def test_every_alert_has_a_section_in_the_runbook_and_the_other_way_round() -> None:
    sections = re.findall(r"^## (Podium\w+)$", RUNBOOK, re.MULTILINE)
    assert sections == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"ops/runbook.md#{alert['alert'].lower()}"
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in ("page", "ticket")


def test_dashboards_and_alerts_name_metrics_and_labels_that_there_are() -> None:
    """Those of a live node are looked at in tests/e2e."""
    metrics = Metrics()
    assert missing_from(metrics.render().decode()) == []
    labels = {
        f"{family.name}{ending}": {*family.labels, "instance", "job", "le"}
        for family in vars(metrics).values()
        if isinstance(family, Family)
        for ending in ("", "_total", "_bucket", "_sum", "_count")
    }
    for expression in expressions():
        named = dict(expression.metrics())
        for name, matched in named.items():
            assert matched <= labels.get(name, {"job", "instance"}), expression
        for label in expression.groupings():
            assert any(label in labels.get(name, ()) for name in named), expression


def test_the_names_in_a_query_are_found() -> None:
    (first, *rest) = expressions()
    query = (
        'histogram_quantile(0.99, sum by (instance, le) (rate(a_bucket{x="b", y!="c"}[2m]))) > 0.5'
        ' or abs(d) and max(e{z=~"f"}) by (g)'
    )
    found = first._replace(text=query)
    assert dict(found.metrics()) == {"a_bucket": {"x", "y"}, "d": set(), "e": {"z"}}
    assert found.groupings() == {"instance", "le", "g"}
    assert len(rest) > 50
