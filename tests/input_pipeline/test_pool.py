"""Work on several processes: its order, and what stays behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.pool import mapped
from tests.killed_parent import assert_worker_ends


def _slow_if_even(number: int) -> tuple[int, int]:
    time.sleep(0.05 * (number % 2 == 0))
    return number, os.getpid()


def test_results_in_order() -> None:
    """Parts in another order are another dataset; items must not be read far ahead."""
    taken = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    results = mapped(_slow_if_even, items(), 2)
    first = next(results)
    assert len(taken) <= 5
    found = [first, *results]
    assert [number for number, _ in found] == list(range(9))
    assert os.getpid() not in {process for _, process in found}
    assert {process for _, process in mapped(_slow_if_even, range(2), 0)} == {os.getpid()}


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Workers of a killed build would go on writing beside those of the next one."""
    script = tmp_path / "build.py"
    assert_worker_ends(
        script,
        "import os, time\n"
        "from input_pipeline.pool import mapped\n"
        "def work(number):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(100)\n"
        "if __name__ == '__main__':\n"
        "    list(mapped(work, range(4), 1))\n",
    )
