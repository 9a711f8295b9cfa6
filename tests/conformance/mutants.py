"""Breaks the server on purpose, one small change at a time, and looks whether the cases notice.

    python -m tests.conformance.mutants [--seed N] [--count N] [--rule N ...] [--all]

Draws `count` mutations by seed. Each is applied to a copy of cluster/, a server is started from
that copy, and the cases of its rule are run on it against the answers that the real server gave
last (so run `make conformance` before). At least one case has to fail. Exit status 1 if a mutant
survives, or a case fails without any mutation.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.harness import Mark, load_cases
from tests.conformance.mutations import MUTANTS, Mutant
from tests.conformance.runs import THREADS, Runs
from tests.conformance.servers import ROOT, podium

CACHE = ROOT / ".pytest_cache" / "d" / "conformance"
AT_A_TIME = 2


@dataclass
class Verdict:
    """What became of a mutant: the cases that failed, or why it could not be tried."""

    mutant: Mutant
    failed: list[str]
    cases: int
    seconds: float
    fault: str = ""

    @property
    def is_caught(self) -> bool:
        return bool(self.failed) and not self.fault

    def line(self) -> str:
        mutant = self.mutant
        what = f"{short(mutant.old)} -> {short(mutant.new)}"
        if self.fault:
            end = f"NOT TRIED {self.fault}"
        elif self.failed:
            end = f"caught by {self.failed[0]}"
        else:
            end = f"SURVIVES {self.cases} cases"
        return f"{mutant.rule:4}  {mutant.file:28} {what:68} {self.seconds:5.1f} s  {end}"


def short(text: str, width: int = 32) -> str:
    text = " ".join(text.split()) or "(nothing)"
    return text if len(text) <= width else text[: width - 1] + "…"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rule", type=int, action="append", help="this rule's mutants only")
    parser.add_argument("--all", action="store_true", help="all mutants (a quarter of an hour)")
    wanted = parser.parse_args(arguments)
    seed = random.randrange(10_000) if wanted.seed is None else wanted.seed
    if wanted.rule:
        drawn = [mutant for mutant in MUTANTS if mutant.rule in wanted.rule]
    elif wanted.all:
        drawn = list(MUTANTS)
    else:
        print(f"seed {seed}")
        drawn = random.Random(seed).sample(MUTANTS, wanted.count)
    if not CACHE.is_dir():
        print("no answers of the real server are kept yet: make conformance", file=sys.stderr)
        return 1
    by_rule = cases_by_rule()
    broken = fail_anyway({name: m for one in drawn for name, m in by_rule[one.rule].items()})
    if broken:
        print(f"fail without any mutation: {', '.join(broken)}")
    verdicts = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        tried = [pool.submit(verdict_on, one, by_rule[one.rule], broken) for one in drawn]
        for future in as_completed(tried):
            verdicts.append(future.result())
            print(verdicts[-1].line(), flush=True)
    left = sorted(verdict.mutant.rule for verdict in verdicts if not verdict.is_caught)
    print(f"{len(verdicts) - len(left)} of {len(verdicts)} mutants caught", end="")
    print(f", not those of rules {', '.join(map(str, left))}" if left else "")
    return 1 if left or broken else 0


def cases_by_rule() -> dict[int, dict[str, Mark]]:
    found: dict[int, dict[str, Mark]] = {}
    for mark in load_cases().values():
        for number in mark.rules:
            found.setdefault(number, {})[mark.name] = mark
    return found


def fail_anyway(marks: dict[str, Mark]) -> list[str]:
    """Cases that fail on the server as it is; each gets a second chance."""
    with copy_of_the_server() as tree:
        first = failures(marks, tree, stop_at_first=False)
        return failures({name: marks[name] for name in first}, tree, stop_at_first=False)


def verdict_on(mutant: Mutant, marks: dict[str, Mark], broken: Sequence[str]) -> Verdict:
    began = time.monotonic()
    fair = {name: mark for name, mark in marks.items() if name not in broken}
    failed: list[str] = []
    fault = ""
    with copy_of_the_server() as tree:
        try:
            mutate(tree, mutant)
            failed = failures(fair, tree, stop_at_first=True)
        except (ValueError, RuntimeError) as error:
            fault = str(error).strip().splitlines()[-1]
    return Verdict(mutant, failed, len(fair), time.monotonic() - began, fault)


@contextmanager
def copy_of_the_server() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="podium-mutant-") as folder:
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "cluster", Path(folder, "cluster"), ignore=left_out)
        yield Path(folder)


def mutate(tree: Path, mutant: Mutant) -> None:
    """Apply a mutation; ValueError where its text does not stand exactly once."""
    path = tree / "cluster" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"the old text stands {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))


def failures(marks: dict[str, Mark], tree: Path, *, stop_at_first: bool) -> list[str]:
    """The cases that fail on a server of this tree. RuntimeError: it does not start."""
    if not marks:
        return []
    failed = []
    with podium(tree) as endpoint:
        runs = Runs("ours", CACHE)
        pool = ThreadPoolExecutor(THREADS["podium"])
        # Recorded ones last: they are those that wait long.
        order = sorted(marks.values(), key=lambda mark: mark.recorded)
        try:
            futures = {pool.submit(runs.timed, mark, endpoint): mark for mark in order}
            for future in as_completed(futures):
                mark = futures[future]
                runs.ours[mark.name] = future
                try:
                    runs.check(mark)
                except Exception:  # Whatever it is: the case did not pass.
                    failed.append(mark.name)
                    if stop_at_first:
                        break
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
