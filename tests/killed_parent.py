"""What becomes of a worker whose parent is killed, the way a machine out of memory does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_SECONDS = 10.0  # that a worker has to notice


def assert_worker_ends(script: Path, source: str) -> None:
    """Starts the script, kills it once it has printed a worker's pid, waits for the worker's end.

    Args:
      script: where it is written.
      source: its text; it prints the pid first of all, and does not end by itself.
    """
    script.write_text(source)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _is_running(worker)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + _SECONDS
        while _is_running(worker):
            if time.monotonic() > deadline:
                os.kill(worker, signal.SIGKILL)
                pytest.fail(f"the worker outlived its parent by {_SECONDS:g} s")
            time.sleep(0.1)  # between looks at /proc


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
