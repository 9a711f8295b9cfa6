"""Which metrics the dashboards and alerts name, and with which labels."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "ops" / "grafana" / "dashboards"
ALERTS = ROOT / "ops" / "prometheus" / "alerts.yml"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()(?:\{[^}]*\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_WORDS = {"and", "or", "unless", "bool", "offset"}


class Expression(NamedTuple):
    """One query, and where it stands."""

    where: str
    text: str

    def metrics(self) -> Iterator[tuple[str, set[str]]]:
        """Each metric it names, with the labels it is matched by."""
        bare = _RANGE.sub("", _GROUPING.sub("", _STRING.sub("s", self.text)))
        for found in _NAME.finditer(bare):
            name, _, matchers = found[0].partition("{")
            if name not in _WORDS:
                yield name, set(_LABEL.findall(matchers))

    def groupings(self) -> set[str]:
        """The labels it groups by."""
        found = _GROUPING.findall(_STRING.sub("s", self.text))
        return {label.strip() for labels in found for label in labels.split(",") if label.strip()}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[Expression]:
    """Every query of all dashboards and alerts."""
    found = [Expression(f"alert {rule['alert']}", rule["expr"]) for rule in alerts()]
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text())
        found += [
            Expression(f"{path.name}: {note['name']}", note["expr"])
            for note in board["annotations"]["list"]
        ]
        found += [
            Expression(f"{path.name}: {panel['title']}", target["expr"])
            for panel in board["panels"]
            for target in panel.get("targets", ())
        ]
    return found


NOT_OURS = {"up"}
"""Metrics that Prometheus makes itself."""


def names_on(page: str) -> set[str]:
    """Every name that a page of /metrics offers to queries."""
    names: set[str] = set()
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            names.add(name)
            if kind == "histogram":
                names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return names


def missing_from(page: str) -> list[str]:
    """What dashboards and alerts name and a page of /metrics does not have."""
    offered = names_on(page) | NOT_OURS
    return [
        f"{expression.where}: {name}"
        for expression in expressions()
        for name, _ in expression.metrics()
        if name not in offered
    ]
