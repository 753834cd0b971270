"""What the tests under wine have in the place of `tests/conftest.py`, much of which is Linux' own."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    "wine",
    max_examples=15,  # each event and lock goes through wineserver
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("wine")
