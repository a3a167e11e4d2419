"""SIGTERM, the notice that a machine goes away: all processes save the same step and end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

_asked = threading.Event()


class Preempted(Exception):
    """Training stopped because it was told to; its message says how to go on."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Takes SIGTERM as a request while the body runs; a second one ends the process at once.

    Among several processes JAX listens since they were joined, and tells the others.
    """
    if jax.distributed.is_initialized():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        _asked.set()
        signal.signal(number, signal.SIG_DFL)
        print("SIGTERM: saving after this step; again to end at once", file=sys.stderr, flush=True)

    _asked.clear()
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked.clear()


def requested(step: int) -> bool:
    """Whether to save and stop after this step. Every process asks at every step.

    All of them get True for the same step: the one after the last that any had reached when the
    notice went round (Cloud TPU maintenance and spot machines send it minutes ahead).
    """
    if jax.distributed.is_initialized():
        return bool(multihost_utils.reached_preemption_sync_point(step))
    return _asked.is_set()
