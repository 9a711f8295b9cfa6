"""Runs test suites one after the other; at the end one line for each, then the sum.

    run_suites.py [--no-skips] [SUITE ...]      default: all of SUITES, in this order

Exit status 0 only if every suite passed. With --no-skips (`make test`, CI) a skipped test counts as
failed: there a missing service is a fault of the set-up, not an excuse.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "build" / "reports"
TOOLS = Path(sys.executable).parent


@dataclass(frozen=True)
class Suite:
    """Either `commands`, each of which counts as one check, or a folder of tests with options."""

    name: str
    deadline_s: int
    commands: tuple[tuple[str, ...], ...] = ()
    folder: str = ""
    options: tuple[str, ...] = ()


COMPLAINT_CHARS = 600

SIMULATE = ("python", "-m", "tests.simulation.simulate")

# The only list of suites. All of it takes less than 40 minutes; a deadline leaves a busy machine
# three times as long as its suite takes.
SUITES = (
    Suite("lint", 120, commands=(("ruff", "check", "."), ("ruff", "format", "--check", "."))),
    Suite("types", 300, commands=(("mypy",),)),
    Suite(
        "unit",
        600,
        folder="tests/unit",
        options=("-n", "auto", "--cov", "--cov-report=term", "--cov-fail-under=95"),
    ),
    Suite("contract", 900, folder="tests/contract"),
    Suite(
        "simulation",
        1_500,
        commands=(
            (*SIMULATE, "--seeds", "0:2000", "--schedules", "20", "--demand-all"),
            ("python", "-m", "pytest", "-q", "tests/simulation"),
        ),
    ),
    Suite(
        "guard",
        900,
        commands=(
            ("python", "-m", "tests.guard.guard", "--only", "embedded"),
            ("python", "-m", "tests.guard.guard", "--only", "cluster"),
        ),
    ),
    Suite("conformance", 1_000, folder="tests/conformance"),
    Suite("e2e", 1_200, folder="tests/e2e"),
    Suite("chaos", 1_500, folder="tests/chaos"),
    Suite("bench", 900, folder="tests/bench"),
)


@dataclass
class Outcome:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""
    complaints: list[str] = field(default_factory=list)
    """A line for each failed test: its name and what it said first."""


def main() -> int:
    by_name = {suite.name: suite for suite in SUITES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(by_name))
    parser.add_argument("--no-skips", action="store_true", help="a skipped test is a failure")
    wanted = parser.parse_args()
    for name in wanted.suites:
        if name not in by_name:
            parser.error(f"no suite {name!r}; there are: {', '.join(by_name)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    REPORTS.mkdir(parents=True, exist_ok=True)

    outcomes: dict[str, Outcome] = {}
    for suite in [by_name[name] for name in wanted.suites] or SUITES:
        print(f"\n== {suite.name} ==", flush=True)
        begin = time.monotonic()
        outcome = run_tests(suite) if suite.folder else run_commands(suite)
        outcome.seconds = time.monotonic() - begin
        if wanted.no_skips and outcome.skipped:
            outcome.failed += outcome.skipped
            outcome.note = outcome.note or "a skipped test counts as failed here"
        outcomes[suite.name] = outcome
    return summarise(outcomes)


def run_commands(suite: Suite) -> Outcome:
    outcome = Outcome()
    for command in suite.commands:
        status = run([str(TOOLS / command[0]), *command[1:]], suite.deadline_s)
        if status == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
            outcome.note = why(status, suite)
    return outcome


def run_tests(suite: Suite) -> Outcome:
    report = REPORTS / f"{suite.name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", suite.folder, *suite.options]
    status = run([*command, f"--junitxml={report}"], suite.deadline_s)
    outcome = read_report(report) if report.exists() else Outcome()
    if status != 0 and outcome.failed == 0:
        # No test failed and yet pytest is not content: no tests, low coverage, a crash, no time.
        outcome.failed = 1
        outcome.note = why(status, suite)
    return outcome


def run(command: list[str], deadline_s: int) -> int | None:
    """Exit status of the command, None if it had to be killed at its deadline."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Also on Ctrl-C: whatever the suite started goes with it.
        stop_group(process)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    # SIGINT first: pytest then runs the clean-up of its fixtures.
    for signal_number, patience_s in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):
        if process.poll() is not None and signal_number is signal.SIGINT:
            continue
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue


def read_report(report: Path) -> Outcome:
    outcome = Outcome()
    for case in ET.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        faults = [*case.iter("failure"), *case.iter("error")]
        if faults:
            outcome.failed += 1
            said = " ".join(faults[0].get("message", "").split())
            outcome.complaints.append(f"{case.get('name')}: {said[:COMPLAINT_CHARS]}")
        elif skipped is not None and skipped.get("type") != "pytest.xfail":
            outcome.skipped += 1
        else:
            outcome.passed += 1
    return outcome


def why(status: int | None, suite: Suite) -> str:
    return f"stopped at {suite.deadline_s} s" if status is None else f"exit status {status}"


def summarise(outcomes: dict[str, Outcome]) -> int:
    print()
    for name, outcome in outcomes.items():
        counts = f"{outcome.passed} passed, {outcome.failed} failed"
        if outcome.skipped:
            counts += f", {outcome.skipped} skipped"
        note = f"  ({outcome.note})" if outcome.note else ""
        print(f"{name:<12} {counts:<36} {outcome.seconds:6.1f} s{note}")
        for complaint in outcome.complaints:
            print(f"    {complaint}")
    failed = sum(outcome.failed for outcome in outcomes.values())
    print(f"{sum(outcome.passed for outcome in outcomes.values())} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
