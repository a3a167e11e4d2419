"""One writer to a folder at a time, among processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the folder's lock; a second process waits, and then finds the work done.

    Args:
      folder: is made if it is not there; the lock is its file `.lock`.
      say: is told if there is something to wait for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that builds {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
