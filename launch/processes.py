"""Several processes of one job on this machine: they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType

GRACE_SECONDS = 30.0  # for the others, when one fails


def run_together(environments: Sequence[Mapping[str, str]], words: Sequence[str]) -> int:
    """Runs a command once for each environment and waits for all.

    SIGTERM and Ctrl-C are handed on, so that all of them save. When one fails, the others get 30 s
    to notice it by themselves, and are then ended.

    Returns:
      0 if all succeed; else the status of the first that failed, 128 + n for signal n.
    """
    children = [subprocess.Popen(words, env={**os.environ, **e}) for e in environments]

    def hand_on(number: int, frame: FrameType | None) -> None:
        del frame
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    # A terminal sends Ctrl-C to the children too; this process only has to outlive it.
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, hand_on),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    failed, deadline = 0, float("inf")
    try:
        while None in (states := [child.poll() for child in children]):
            codes = [state for state in states if state]
            if codes and not failed:
                failed, deadline = codes[0], time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                for child in children:
                    if child.poll() is None:
                        child.kill()
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = failed or next((c.returncode for c in children if c.returncode), 0)
    return 128 - failed if failed < 0 else failed
