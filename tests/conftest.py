"""Settings that every suite shares."""

import os

from hypothesis import HealthCheck, settings

# CI must give the same answer twice; at a desk Hypothesis explores.
settings.register_profile("desk", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "desk")
