"""The same requests to the real Conductor server and to ours; the answers must be equal."""

import pytest

# So that a failed comparison shows where the two answers differ.
pytest.register_assert_rewrite(f"{__name__}.runs", f"{__name__}.harness", f"{__name__}.cases")
