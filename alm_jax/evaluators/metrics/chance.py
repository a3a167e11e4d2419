"""What a random ranking scores: exact expectations, no sampling.

A ranking metric means little without the score of a model that knows nothing. Here a random
ranking is one of the `G!` orders of `G` gallery items, all equally likely, and a query has
`R` relevant ("positive") items among them. Queries may have different `R`; the expectation over
queries is their mean.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def recall_chance(gallery_size: int, positives: NDArray[np.int64], k: int) -> float:
    """Chance of finding at least one positive among the first `k` of a random ranking.

    `1 - C(G-R, k) / C(G, k)` for one query, averaged over queries.

    Args:
      gallery_size: number of gallery items `G`.
      positives: int [queries], number of positives `R` of every query, each in [1, G].
      k: cut-off, at least 1.

    Returns:
      Expected recall@k in [0, 1].
    """
    return _mean_over_queries(positives, lambda r: 1.0 - _miss_probability(gallery_size, r, k))


def average_precision_chance(
    gallery_size: int, positives: NDArray[np.int64], depth: int | None = None
) -> float:
    """Expected average precision of a random ranking.

    Position `r` holds a positive with probability `R/G`; given that, each of the `r-1` places
    before it holds one with probability `(R-1)/(G-1)`, so the expected `precision@r * relevant(r)`
    is `R/G * (1 + (r-1)(R-1)/(G-1)) / r`. The sum over `r <= depth` is divided by `R`, the number
    of all positives, as trec_eval's `map_cut` does.

    Args:
      gallery_size: number of gallery items `G`.
      positives: int [queries], number of positives of every query, each in [1, G].
      depth: rank cut-off; None for the whole ranking.

    Returns:
      Expected mAP@depth in [0, 1].
    """
    places = np.arange(1, min(depth or gallery_size, gallery_size) + 1, dtype=np.float64)
    first = float(np.sum(1.0 / places)) / gallery_size
    others = float(np.sum((places - 1.0) / places)) / gallery_size
    spread = max(gallery_size - 1, 1)
    return _mean_over_queries(positives, lambda r: first + others * (r - 1) / spread)


def median_rank_chance(gallery_size: int, positives: NDArray[np.int64]) -> float:
    """Median of the rank of the best positive when rankings are random.

    The median of the mixture, over queries, of the distributions of the best positive's rank. As
    `numpy.median` does, the two middle values are averaged, so one positive gives `(G+1)/2`.

    Args:
      gallery_size: number of gallery items `G`.
      positives: int [queries], number of positives of every query, each in [1, G].

    Returns:
      Median rank, 1 is best.
    """

    def found_within(rank: int) -> float:
        return recall_chance(gallery_size, positives, rank)

    def first_rank(reached_half: float) -> int:
        low, high = 1, gallery_size
        while low < high:
            middle = (low + high) // 2
            if found_within(middle) >= reached_half:
                high = middle
            else:
                low = middle + 1
        return low

    # The half itself is met exactly by even galleries; rounding must not decide on which side.
    return (first_rank(0.5 - 1e-12) + first_rank(0.5 + 1e-12)) / 2.0


def _miss_probability(gallery_size: int, positives: int, k: int) -> float:
    """Probability that none of `positives` items lies among the first `k` of `gallery_size`."""
    if k + positives > gallery_size:
        return 0.0
    # C(G-R, k) / C(G, k) is symmetric in R and k: multiply over whichever is smaller.
    few, many = sorted((positives, k))
    steps = np.arange(few, dtype=np.float64)
    return float(np.prod((gallery_size - many - steps) / (gallery_size - steps)))


def _mean_over_queries(positives: NDArray[np.int64], value_of: Callable[[int], float]) -> float:
    counts, queries = np.unique(np.asarray(positives), return_counts=True)
    total = math.fsum(value_of(int(r)) * int(n) for r, n in zip(counts, queries, strict=True))
    return total / int(queries.sum())
