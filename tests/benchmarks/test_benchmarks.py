"""The benchmarks beside PyTorch still start; what they measure is theirs to say."""

from __future__ import annotations

import time

from tests.benchmarks import overheads
from tests.benchmarks.measure import Way, compare, table


def test_ratio_of_two_ways() -> None:
    """A table that has the ratio upside down calls the slower one the faster."""
    ours, other = Way("ours", lambda: time.sleep(0.01)), Way("other", lambda: time.sleep(0.06))
    row = compare("here", "sleeping", ours, other, 3)
    assert row.ratio is not None and 2 < row.ratio < 20
    assert f"| {row.ratio:.2f} |" in table([row])


def test_python_per_step() -> None:
    """A change of the train step that the benchmarks were not told of shows months later."""
    row = overheads.python_per_step(1)
    assert "arrays of state" in row.what and 0 < row.ours[1] < 50
