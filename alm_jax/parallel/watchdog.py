"""A watchdog for steps that never end, such as a collective that some host does not join."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

import jax


class Watchdog:
    """Reports a step that takes too long, with the stack of every thread.

    Among several processes it also ends this one, for a job in which one host hangs holds all the
    others; on a single machine it only reports, once, and nobody else is waiting.
    """

    def __init__(self, seconds: float) -> None:
        """Starts watching.

        Args:
          seconds: longest time between two beats; 0 watches nothing.
        """
        self._seconds = seconds
        self._doing = "starting"
        self._since = time.monotonic()
        self._reported = False
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str) -> None:
        """Says that something new begins, named for the message."""
        self._doing, self._since, self._reported = doing, time.monotonic(), False

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 10.0)):
            spent = time.monotonic() - self._since
            if spent < self._seconds or self._reported:
                continue
            self._reported = True
            several = jax.distributed.is_initialized()
            # The process's own stream: whoever replaced sys.stderr may have no file behind it.
            stream = sys.__stderr__ or sys.stdout
            print(
                f"alm train: {self._doing} has taken {spent:.0f} s, more than "
                f"train.stall_seconds={self._seconds:g}. What every thread is doing:",
                file=stream,
                flush=True,
            )
            faulthandler.dump_traceback(stream, all_threads=True)
            if several:
                print(
                    f"alm train: process {jax.process_index()} of {jax.process_count()} ends, and "
                    "so do the others. The same command goes on from the last checkpoint",
                    file=stream,
                    flush=True,
                )
                os._exit(1)
