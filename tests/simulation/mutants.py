"""Breaks the code on purpose, one patch at a time, and looks after how many seeds it is noticed.

    python -m tests.simulation.mutants [--seeds N] [NAME ...]

Each patch of tests/simulation/mutants/ is applied to a copy of the tree; the simulation runs there
until a seed fails. Exit status 1 if a mutant gets through all seeds, or does not apply.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MUTANTS = Path(__file__).parent / "mutants"
_SIMULATE = (sys.executable, "-m", "tests.simulation.simulate", "--stop")
_COPIED = ("cluster", "tests")


@dataclass
class Verdict:
    """How a mutant fared."""

    name: str
    seeds: int
    seconds: float
    noticed: str
    """The first thing that was found, or nothing."""
    fault: str = ""
    """Why it could not be tried."""

    def line(self) -> str:
        end = f"caught by {self.noticed}" if self.noticed else self.fault or "SURVIVES"
        return f"{self.name:34} {self.seeds:5} seeds {self.seconds:6.0f} s  {end}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all patches")
    parser.add_argument("--seeds", type=int, default=600, help="at most, per mutant")
    wanted = parser.parse_args()
    names = wanted.names or [patch.stem for patch in patches()]
    verdicts = []
    for name in names:
        verdicts.append(_verdict_on(name, wanted.seeds))
        print(verdicts[-1].line(), flush=True)
    left = [verdict.name for verdict in verdicts if not verdict.noticed]
    print(f"{len(verdicts) - len(left)} of {len(verdicts)} mutants caught")
    return 1 if left else 0


def patches() -> list[Path]:
    """All mutants."""
    return sorted(MUTANTS.glob("*.patch"))


@contextmanager
def mutated(patch: Path) -> Iterator[Path]:
    """A copy of the tree with a patch applied. CalledProcessError: it does not fit any more."""
    with tempfile.TemporaryDirectory(prefix="podium-mutant-") as folder:
        left_out = shutil.ignore_patterns("__pycache__", "recorded")
        for name in _COPIED:
            shutil.copytree(ROOT / name, Path(folder, name), ignore=left_out)
        command = ["patch", "--strip=1", "--silent", "--fuzz=3", f"--input={patch}"]
        subprocess.run(command, cwd=folder, check=True)
        yield Path(folder)


def _verdict_on(name: str, seeds: int) -> Verdict:
    began_s = time.monotonic()
    with mutated(MUTANTS / f"{name}.patch") as tree:
        simulation = subprocess.run(
            [*_SIMULATE, "--schedules", "8", "--seeds", f"0:{seeds}"],
            cwd=tree,
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"^--seeds (.*) FAILED.*\n +(.*)", simulation.stdout, re.MULTILINE)
    runs = re.search(r"^(\d+) seeds in", simulation.stdout, re.MULTILINE)
    fault = "" if runs else f"NOT TRIED {simulation.stderr.strip().splitlines()[-1:]}"
    return Verdict(
        name,
        int(runs[1]) if runs else 0,
        time.monotonic() - began_s,
        f"{found[1]}: {found[2][:110]}" if found else "",
        fault,
    )


if __name__ == "__main__":
    sys.exit(main())
