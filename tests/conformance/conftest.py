"""Options of the conformance suite, and the table of rules at its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.conformance.harness import Mark, load_cases
from tests.conformance.runs import Mode, Runs

MODE = pytest.StashKey[Mode]()
RUNS = pytest.StashKey[Runs]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    for option, text in {
        "--oracle-only": "run the cases on the real server only (to write cases)",
        "--ours-only": "run them on ours only, against recorded and remembered answers",
        "--record": "run the recorded cases on the real server and write their files",
    }.items():
        group.addoption(option, action="store_true", default=False, help=text)


def mode_of(config: pytest.Config) -> Mode:
    options: dict[str, Mode] = {
        "--oracle-only": "oracle",
        "--ours-only": "ours",
        "--record": "record",
    }
    chosen = [mode for option, mode in options.items() if config.getoption(option, default=False)]
    if len(chosen) > 1:
        raise pytest.UsageError(f"choose one of {', '.join(options)}")
    return chosen[0] if chosen else "both"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mode = mode_of(config)
    if mode not in ("oracle", "record"):
        return
    # The recorded cases are those that are not asked live.
    dropped = [
        item for item in items if (mark := mark_of(item)) and mark.recorded != (mode == "record")
    ]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def mark_of(item: pytest.Item) -> Mark | None:
    call = getattr(item, "callspec", None)
    found = call.params.get("mark") if call is not None else None
    return found if isinstance(found, Mark) else None


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """All selected cases, already running."""
    config = request.config
    assert config.cache is not None
    with Runs(mode_of(config), config.cache.mkdir("conformance")) as session:
        config.stash[RUNS] = session
        session.begin([mark for item in request.session.items if (mark := mark_of(item))])
        yield session


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = config.stash.get(RUNS, None)
    if session is None:
        return
    outcomes: dict[str, bool] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.partition("[")[2].rstrip("]")
            outcomes[name] = outcomes.get(name, True) and outcome == "passed"
    by_rule: dict[int, list[str]] = defaultdict(list)
    for mark in load_cases().values():
        if mark.name in outcomes:
            for number in mark.rules:
                by_rule[number].append(mark.name)
    good = [n for n, names in by_rule.items() if all(outcomes[name] for name in names)]
    write = terminalreporter.write_line
    terminalreporter.section(f"rules: {len(good)} of {len(by_rule)} hold")
    for number in sorted(by_rule):
        bad = [name for name in by_rule[number] if not outcomes[name]]
        if bad or session.mode == "ours":
            names = ", ".join(by_rule[number])
            write(f"{number:4} " + (f"FAILS {', '.join(bad)}" if bad else f"holds {names}"))
    slow = sorted(session.seconds.items(), key=lambda item: -item[1])[:8]
    write("slowest: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slow))
    if session.again:
        write(f"asked the real server twice: {', '.join(session.again)}")
