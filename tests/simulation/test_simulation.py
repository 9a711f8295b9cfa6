"""The simulator itself: a seed replays exactly, its checkers bite, every mutant still applies."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS, mutated, patches

ROOT = Path(__file__).parents[2]
SEED = 7


def simulated(*options: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.simulation.simulate", *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_seed_replays_exactly() -> None:
    traces = [simulated("--seeds", str(SEED), "--trace") for _ in range(2)]
    first, again = (trace.stdout.rpartition("\n1 seeds")[0] for trace in traces)
    assert len(first.splitlines()) > 200
    assert first == again


@pytest.mark.parametrize("patch", patches(), ids=lambda patch: patch.stem)
def test_a_mutant_still_fits_the_code(patch: Path) -> None:
    with mutated(patch) as tree:
        for name in ("run", "simulate"):
            assert (tree / "tests" / "simulation" / f"{name}.py").is_file()


def test_a_mutant_is_noticed() -> None:
    with mutated(MUTANTS / "act_before_commit.patch") as tree:
        found = simulated("--seeds", "0:20", "--stop", cwd=tree)
    assert found.returncode == 1
    assert "FAILED" in found.stdout
