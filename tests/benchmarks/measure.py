"""Two ways to do one thing, timed in turns, so that whatever else the machine does meets both."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to do the thing.

    Attributes:
      name: who does it.
      run: does it once, to the end.
    """

    name: str
    run: Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      benchmark: the module's name.
      what: the thing.
      unit: of both values; lower is better for "s" and "ms", higher for what is per second.
      ours: (who, value).
      other: (who, value) of what it is compared with, or None.
      ratio: how many times better ours is; None without another.
      aim: what the ratio should be, or the value where there is no other; None for none.
      note: what a reader must know to believe the number.
      times: all single measurements, by who.
    """

    benchmark: str
    what: str
    unit: str
    ours: tuple[str, float]
    other: tuple[str, float] | None = None
    ratio: float | None = None
    aim: str = ""
    note: str = ""
    times: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def in_turns(
    ways: Sequence[Way], repeats: int, *, warm_up: int = 1, again: bool = False
) -> dict[str, list[float]]:
    """Seconds of each run: a warm-up of every way, then all of them in turn, `repeats` times.

    Args:
      ways: to do the thing.
      repeats: turns that are timed.
      warm_up: turns before.
      again: run twice in each turn, and take the second time. While the other way has its turn, a
        virtual machine gives memory back to its host, and to get 5 GB again took a train step 5 of
        its 16 seconds; steps that follow each other, as in training, have it.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    with tqdm(total=(warm_up + repeats) * len(ways), leave=False) as bar:
        for turn in range(warm_up + repeats):
            for way in ways:
                bar.set_description(way.name)
                gc.collect()
                if again:
                    way.run()
                started = time.perf_counter()
                way.run()
                if turn >= warm_up:
                    times[way.name].append(time.perf_counter() - started)
                bar.update()
    return times


def compare(
    benchmark: str,
    what: str,
    ours: Way,
    other: Way,
    repeats: int,
    *,
    aim: str = "",
    note: str = "",
    again: bool = False,
) -> Row:
    """A row of two ways' median seconds; see `in_turns`."""
    times = in_turns([ours, other], repeats, again=again)
    mine, theirs = (statistics.median(times[way.name]) for way in (ours, other))
    return Row(
        benchmark,
        what,
        "s",
        (ours.name, mine),
        (other.name, theirs),
        theirs / mine,
        aim,
        note,
        times,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | ours | compared with | times better | aim |", "|---|---|---|---|---|"]
    for row in rows:
        ours, other = (
            "" if value is None else f"{value[1]:,.4g} {row.unit} ({value[0]})"
            for value in (row.ours, row.other)
        )
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        what = row.what + (f"; {row.note}" if row.note else "")
        lines.append(f"| {what} | {ours} | {other} | {ratio} | {row.aim} |")
    return "\n".join(lines)
