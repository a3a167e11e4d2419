"""Work on several processes, its results in order; none of them outlives the one that asked."""

from __future__ import annotations

import collections
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, *, ahead: int = 2
) -> Iterator[Result]:
    """Applies `work` to every item, a few ahead of the one that is taken.

    Args:
      work: a function that pickles.
      items: are taken one by one, as processes come free.
      workers: processes; 0: none but this one.
      ahead: items that are handed out at a time, for each process.

    Yields:
      Its results in the order of the items.
    """
    if workers == 0:
        yield from map(work, items)
        return
    # spawn: forking a process that has started JAX or gRPC threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=exit_with, initargs=(os.getpid(),)
    ) as pool:
        waiting: collections.deque[Future[Result]] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= ahead * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def exit_with(parent: int) -> None:
    """Ends this process once process `parent`, which started it, is gone.

    Workers are ended when the parent exits in order; when it is killed they would otherwise stay,
    with their memory.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)  # Linux alone can signal a parent's death; looking works everywhere
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
