"""The benchmarks beside PyTorch still start; what they measure is theirs to say."""

from __future__ import annotations

import pytest

from tests.benchmarks import overheads
from tests.benchmarks.measure import Way, compare, table


def test_ratio_of_two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that has the ratio upside down calls the slower one the faster."""
    clock = [0.0]

    def takes(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr("tests.benchmarks.measure.time.perf_counter", lambda: clock[0])
    ways = Way("ours", lambda: takes(0.5)), Way("other", lambda: takes(3.0))
    row = compare("here", "waiting", *ways, 3)
    assert row.ratio == 6.0
    assert "| waiting | 0.5 s (ours) | 3 s (other) | 6.00 |" in table([row])


@pytest.mark.slow
def test_python_per_step() -> None:
    """A change of the train step that the benchmarks were not told of shows months later."""
    row = overheads.python_per_step(1)
    assert "arrays of state" in row.what and 0 < row.ours[1] < 50
