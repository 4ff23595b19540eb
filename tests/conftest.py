"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No test fails for being slow: machines are busy, and the first text that hypothesis makes up on a
# machine takes it a second.
settings.register_profile(
    "cortex",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("cortex")
