"""Starts jobs of several real processes on this machine: `python -m tests.parallel.hosts`.

It imports what training needs once and forks each process from there, before JAX has made a
backend; importing it anew in each would take most of the tests' time. Reads one request a line and
answers with one line of JSON; `Jobs` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests import quick_compilation

ROOT = pathlib.Path(__file__).parents[2]


class Job:
    """The processes of one job."""

    def __init__(self, jobs: Jobs, pids: Sequence[int], logs: Sequence[pathlib.Path]):
        self._jobs, self.pids, self._logs = jobs, pids, logs

    def log(self, number: int) -> str:
        return self._logs[number].read_text(errors="replace")

    def signal(self, number: int, what: signal.Signals) -> None:
        os.kill(self.pids[number], what)

    def wait(self, number: int, seconds: float = 900) -> int:
        """Exit status, negative for a signal; fails when it does not end in time."""
        answer = self._jobs.ask(dict(wait=self.pids[number], seconds=seconds))
        assert answer["status"] is not None, f"still running after {seconds} s:\n{self.log(number)}"
        return answer["status"]

    def succeed(self) -> Job:
        for number in range(len(self.pids)):
            assert self.wait(number) == 0, self.log(number)
        return self


class Jobs:
    """Starts jobs; close it to end whatever still runs."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._count = folder, 0
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.hosts"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def train(self, processes: int, *arguments: str, devices: int = 1) -> Job:
        """Starts `alm train ARGUMENTS` in so many processes, each with so many CPU devices."""
        self._count += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        logs, environments = [], []
        for number in range(processes):
            environment = {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
                f" {quick_compilation.FLAGS}"
            }
            if processes > 1:
                environment |= {
                    "ALM_COORDINATOR_ADDRESS": address,
                    "ALM_PROCESS_COUNT": str(processes),
                    "ALM_PROCESS_ID": str(number),
                }
            environments.append(environment)
            logs.append(self._folder / f"job{self._count}_{number}.log")
        request = dict(arguments=["train", *arguments], environments=environments)
        pids = self.ask(request | dict(logs=list(map(str, logs))))["pids"]
        return Job(self, pids, logs)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)


def _start(arguments: list[str], environment: dict[str, str], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    from alm_jax import cli

    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        path = log if descriptor else os.devnull
        file = os.open(path, flags | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
    os.environ.update(environment)
    sys.exit(cli.main(arguments))


def _wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return None


def main() -> None:
    import jax

    import alm_jax.train  # noqa: F401

    del jax
    started: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = _wait(request["wait"], request["seconds"])
            if status is not None:
                started.remove(request["wait"])
            print(json.dumps(dict(status=status)), flush=True)
            continue
        pids = [
            _start(request["arguments"], environment, log)
            for environment, log in zip(request["environments"], request["logs"], strict=True)
        ]
        started += pids
        print(json.dumps(dict(pids=pids)), flush=True)
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
