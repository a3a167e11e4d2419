"""Average precision of every class over clips, and the interval of its mean.

The clips are ranked by their score for a class; ties count against the model, as everywhere
(`ranking`). A class without a clip has no average precision.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alm_jax.evaluators.metrics.bootstrap import Interval, group_mean_interval
from alm_jax.evaluators.metrics.chance import average_precision_chance
from alm_jax.evaluators.metrics.ranking import Positives, rank_positives


class ClassPrecision(NamedTuple):
    """Average precision by class.

    Attributes:
      present: int [p], rows of the classes that have clips.
      counts: int [p], clips of each.
      values: float64 [p], their average precision.
      chance: expected mean of a random ranking.
      interval: of the mean over present classes. The ranking stays that of all clips: drawn are the
        clips whose precision a class averages.
    """

    present: NDArray[np.int64]
    counts: NDArray[np.int64]
    values: NDArray[np.float64]
    chance: float
    interval: Interval | None

    @property
    def mean(self) -> float:
        """Over the classes that have clips."""
        return math.fsum(self.values) / len(self.values)


def class_precision(
    clips: NDArray[np.int32],
    classes: NDArray[np.int32],
    clip: NDArray[np.int64],
    label: NDArray[np.int64],
    *,
    tie_tolerance: float,
    intervals: bool = True,
) -> ClassPrecision:
    """Ranks all clips for every class that has some.

    Args:
      clips: [n, D] of `ranking.unit_grid`.
      classes: [c, D] of the same.
      clip: int [pairs], clips that have a class.
      label: int [pairs], the class.
      tie_tolerance: cosine difference up to which two clips are tied.
      intervals: whether to compute the interval.
    """
    present, positives = Positives.from_pairs(label, clip)
    ranks = rank_positives(
        classes[present], clips, positives, depth=None, tie_tolerance=tie_tolerance
    )
    ends = None
    if intervals:
        owner = np.repeat(np.arange(len(present)), positives.counts)
        order = np.lexsort((ranks.places, owner))
        first = np.cumsum(positives.counts) - positives.counts
        nth = np.arange(len(owner)) - first[owner] + 1
        ends = group_mean_interval(
            positives.items[order], present[owner], nth / ranks.places[order]
        )
    return ClassPrecision(
        present=present,
        counts=positives.counts,
        values=ranks.average_precision,
        chance=average_precision_chance(len(clips), positives.counts),
        interval=ends,
    )
