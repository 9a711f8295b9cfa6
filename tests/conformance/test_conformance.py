"""Every case on both servers."""

from __future__ import annotations

import pytest

from tests.conformance.harness import Mark, load_cases
from tests.conformance.runs import Runs


@pytest.mark.parametrize("mark", [pytest.param(m, id=m.name) for m in load_cases().values()])
def test_both_servers_answer_alike(mark: Mark, runs: Runs) -> None:
    runs.check(mark)
