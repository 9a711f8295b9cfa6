"""rules.toml says of each of the 289 rules how it is kept, and every case it names exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.conformance import recordings
from tests.conformance.harness import Json, load_cases
from tests.conformance.mutations import MUTANTS
from tests.conformance.servers import ROOT

HERE = Path(__file__).parent
SEMANTICS = HERE.parents[1] / "docs" / "conductor" / "semantics.md"
DIFFERENCES = HERE.parents[1] / "docs" / "differences.md"
KINDS = {"case", "difference", "inside", "later"}


def entries() -> dict[int, Json]:
    with (HERE / "rules.toml").open("rb") as file:
        return {int(number): entry for number, entry in tomllib.load(file)["rules"].items()}


def test_every_rule_has_an_entry() -> None:
    numbers = re.findall(r"^(\d+)\. ", SEMANTICS.read_text(), re.MULTILINE)
    assert {int(number) for number in numbers} == set(entries()) == set(range(1, 290))


def test_every_entry_is_of_a_known_kind_and_says_why_or_names_cases() -> None:
    for number, entry in entries().items():
        assert entry["kind"] in KINDS, (number, entry)
        if entry["kind"] in ("case", "difference"):
            assert entry["cases"], number
        if entry["kind"] != "case":
            assert entry["why"], number


def test_every_case_of_an_entry_exists_and_is_marked_with_the_rule() -> None:
    marks = load_cases()
    for number, entry in entries().items():
        named = [marks[name] for name in entry.get("cases", [])]
        assert all(number in mark.rules for mark in named), (number, entry)
        if entry["kind"] == "difference":
            assert any(mark.difference for mark in named), (number, entry)


def test_every_case_is_named_by_the_entries_of_its_rules() -> None:
    by_rule = entries()
    for mark in load_cases().values():
        # Those of rest_*.py show docs/conductor/rest-api.md, which has no numbers.
        assert mark.rules or ".rest_" in mark.case.__module__, mark.name
        for number in mark.rules:
            assert mark.name in by_rule[number].get("cases", []), (number, mark.name)


def test_every_recording_belongs_to_a_case_and_is_unedited() -> None:
    wanted = {name for name, mark in load_cases().items() if mark.recorded}
    assert recordings.all_names() == wanted
    for name in wanted:
        recordings.read(name)


def test_every_difference_is_documented_and_none_that_is_not_there() -> None:
    page = DIFFERENCES.read_text()
    listed: set[int] = set()
    for cell in re.findall(r"^\| ([\d, -]+) \|", page, re.MULTILINE):
        for part in cell.split(","):
            first, _, last = part.partition("-")
            listed |= set(range(int(first), int(last or first) + 1))
    by_kind = {number: entry["kind"] for number, entry in entries().items()}
    different = {number for number, kind in by_kind.items() if kind == "difference"}
    assert different <= listed
    assert {by_kind[number] for number in listed - different} <= {"inside"}
    for mark in load_cases().values():
        if mark.difference and not mark.rules:
            assert f"`{mark.name}`" in page, mark.name


def test_every_mutation_fits_the_code_and_has_a_case_that_may_notice() -> None:
    shown = {number for mark in load_cases().values() for number in mark.rules}
    for mutant in MUTANTS:
        text = (ROOT / "cluster" / mutant.file).read_text()
        assert text.count(mutant.old) == 1, mutant
        assert mutant.rule in shown, mutant
