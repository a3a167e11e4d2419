"""Confidence intervals: what the number could have been with other clips of the same kind.

The clips (with all their captions and queries) are drawn again with replacement, 1,000 times from
one seed, and the statistic is computed on each draw; the interval lies between the 2.5 % and the
97.5 % point. The gallery, the classes and document frequencies stay those of the whole set, so the
interval is about the choice of queries, not about a harder gallery.

A draw is a weight (0, 1, 2, ...) for every clip, and all draws are computed at once. Clips are put
into an order of their values first, so that the order of the files changes no digit.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3 (percentiles).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
_BLOCK = 1_000_000  # weights in memory at a time

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Interval(NamedTuple):
    """Ends of a confidence interval, and the number of draws it was made of."""

    low: float
    high: float
    resamples: int

    def fields(self, unit: str = "clips") -> dict[str, Any]:
        """The fields of a results row that say it."""
        return {
            "ci_low": self.low,
            "ci_high": self.high,
            "ci": f"{LEVEL:.0%} bootstrap over {unit}, {self.resamples} draws, seed {SEED}",
        }


def interval(n: int, statistic: Statistic, resamples: int = RESAMPLES) -> Interval | None:
    """The interval of any statistic of weighted clips.

    Args:
      n: number of clips.
      statistic: weights float64 [b, n] -> values [b]; NaN where a draw has no value.
      resamples: draws.

    Returns:
      The interval; None of fewer than two clips, whose number has no spread to speak of.
    """
    if n < 2:
        return None
    rng = np.random.default_rng(SEED)
    rows = max(1, _BLOCK // n)
    found = []
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        found.append(statistic(weights.astype(np.float64)))
    values = np.concatenate(found)
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high), resamples)


def mean_interval(values: ArrayLike, cluster: ArrayLike | None = None) -> Interval | None:
    """The interval of the mean over queries.

    Args:
      values: [q], one of each query.
      cluster: int [q], the clip that a query belongs to; None: each to a clip of its own.
    """
    table = _table(values, cluster)
    sums, counts = np.nansum(table, axis=1), (~np.isnan(table)).sum(axis=1)
    return interval(len(table), lambda w: (w @ sums) / (w @ counts))


def median_interval(values: ArrayLike, cluster: ArrayLike | None = None) -> Interval | None:
    """The interval of the median over queries; arguments as in `mean_interval`."""
    table = _table(values, cluster)
    clip, place = np.nonzero(~np.isnan(table))
    order = np.argsort(table[clip, place], kind="stable")
    ordered, clip = table[clip, place][order], clip[order]

    def median(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        reached = np.cumsum(weights[:, clip], axis=1)
        half = reached[:, -1:] / 2
        # The two middle values are averaged, as numpy.median does.
        low = (reached < half).sum(axis=1)
        high = (reached <= half).sum(axis=1)
        return (ordered[low] + ordered[np.minimum(high, len(ordered) - 1)]) / 2

    # A row of weights is spread over all queries of the clips.
    return interval(len(table), median)


def group_mean_interval(clip: ArrayLike, group: ArrayLike, value: ArrayLike) -> Interval | None:
    """The interval of a mean over groups of their means: classes, or folds.

    A group that a draw has no clip of is left out of that draw's mean.

    Args:
      clip: int [p], the clip of each value.
      group: int [p], the group that it is averaged in.
      value: [p].
    """
    columns = (np.asarray(value, np.float64), np.asarray(group), np.asarray(clip))
    order = np.lexsort(columns)
    values, groups, clips = (column[order] for column in columns)
    starts = np.flatnonzero(np.diff(clips, prepend=-1))
    pairs = list(zip(groups.tolist(), values.tolist(), strict=True))
    ends = [*starts.tolist()[1:], len(pairs)]
    own = [tuple(pairs[a:b]) for a, b in zip(starts.tolist(), ends, strict=True)]
    place = np.empty(len(own), np.int64)
    place[sorted(range(len(own)), key=own.__getitem__)] = np.arange(len(own))
    clips = np.repeat(place, np.diff([*starts, len(pairs)]))
    order = np.lexsort((values, clips, groups))
    values, groups, clips = values[order], groups[order], clips[order]
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = weights[:, clips]
        below = np.add.reduceat(drawn, firsts, axis=1)
        above = np.add.reduceat(drawn * values, firsts, axis=1)
        ratios = np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
        return np.nanmean(ratios, axis=1)

    return interval(len(own), mean)


def _table(values: ArrayLike, cluster: ArrayLike | None) -> NDArray[np.float64]:
    """A row [most queries] for each clip with its values, NaN behind; rows ordered by values."""
    flat = np.asarray(values, np.float64)
    owner = np.arange(len(flat)) if cluster is None else np.asarray(cluster)
    _, owner = np.unique(owner, return_inverse=True)
    order = np.lexsort((flat, owner))
    flat, owner = flat[order], owner[order]
    counts = np.bincount(owner)
    table = np.full((len(counts), int(counts.max())), np.nan)
    table[owner, np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)] = flat
    return table[np.lexsort(np.nan_to_num(table, nan=np.inf).T)]
