"""Cosine ranks that do not depend on row order, chunk size, BLAS or lucky ties.

Two things make retrieval numbers differ when they should not. A float32 matrix product is rounded
differently for another chunk size, thread count or framework; and a score tied with the right
item's is counted as a win by the usual `>`, which gives a model that maps every input to one
point a perfect recall. So:

* every embedding is scaled to length one and rounded to multiples of 2**-25 (3e-8, half the
  spacing of float32 numbers just below one). Dot products of such vectors are sums of integers
  that stay below 2**53 (Cauchy-Schwarz), hence exact in float64 in any order of summation;
* a wrong item counts as ranked before the right one unless it scores lower by more than a
  tolerance (1e-6 by default). Equal inputs, whose embeddings differ only by float32 noise, are
  thereby ties in the training framework and in an exported model alike, and ties always count
  against the model.

A pair of different sounds whose scores happen to differ by the tolerance to within the noise can
still be ranked differently by two frameworks; at float32 noise (about 1e-7) and 1000 x 1000 pairs
that moves some item's rank by one place about once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError

TIE_TOLERANCE = 1e-6
GRID = 2.0**25
_BLOCK = 2048


@dataclass(frozen=True)
class Positives:
    """The right gallery items of every query, stored back to back.

    Attributes:
      items: int [pairs], gallery rows, those of query 0 first.
      counts: int [queries], how many belong to each query, all at least 1.
    """

    items: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def from_pairs(
        cls, query: NDArray[np.int64], item: NDArray[np.int64]
    ) -> "tuple[NDArray[np.int64], Positives]":
        """Groups (query, item) pairs by query.

        Args:
          query: int [pairs], query row of each pair.
          item: int [pairs], a right gallery row for that query; repeated pairs count once.

        Returns:
          The distinct query rows in rising order, and their positives in that order.
        """
        pairs = np.unique(np.stack([query, item], axis=1).astype(np.int64), axis=0)
        queries, counts = np.unique(pairs[:, 0], return_counts=True)
        return queries, cls(items=pairs[:, 1].copy(), counts=counts.astype(np.int64))


@dataclass(frozen=True)
class Ranks:
    """How well each query found its right items.

    Attributes:
      best: int [queries], rank of the best placed right item, 1 is first, ties against the model.
      average_precision: float64 [queries], average precision down to the asked depth, divided by
        the number of all right items of the query.
      places: int [pairs], rank of each right item, in the order of `Positives.items`.
    """

    best: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    places: NDArray[np.int64]


def check_embeddings(x: ArrayLike, name: str) -> NDArray[np.float64]:
    """Returns `x` as float64 [rows, D], refusing what would poison every number made from it.

    Args:
      x: embeddings [rows, D] of any float type.
      name: what the rows are, for the message, e.g. 'audio'.

    Raises:
      UserError: not two-dimensional, empty, or with NaN or infinite values (names the rows).
    """
    array = np.ascontiguousarray(np.asarray(x), dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(
            f"{name} embeddings must have shape [rows, dimensions] with at least one of each, "
            f"got {array.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        shown = ", ".join(str(row) for row in bad[:10]) + (", ..." if bad.size > 10 else "")
        raise UserError(
            f"{name} embeddings hold NaN or infinite values in {bad.size} of {len(array)} rows "
            f"(rows {shown}): look at these inputs, or at a training loss that went to NaN"
        )
    return array


def unit_grid(x: ArrayLike, name: str) -> NDArray[np.int32]:
    """Scales rows to length one and rounds them to the grid of 2**-25.

    An all-zero row has no direction and stays zero: its score with everything is 0.

    Args:
      x: finite embeddings [rows, D].
      name: what the rows are, for error messages.

    Returns:
      int32 [rows, D], multiples of 2**-25.
    """
    array = check_embeddings(x, name)
    largest = np.abs(array).max(axis=1, keepdims=True)
    array = array / np.where(largest > 0, largest, 1.0)  # squares can neither over- nor underflow
    length = np.sqrt(np.square(array).sum(axis=1, keepdims=True))
    return np.rint(array / np.where(length > 0, length, 1.0) * GRID).astype(np.int32)


def rank_positives(
    query: NDArray[np.int32],
    gallery: NDArray[np.int32],
    positives: Positives,
    *,
    depth: int | None = 10,
    tie_tolerance: float = TIE_TOLERANCE,
) -> Ranks:
    """Ranks the gallery for every query, in blocks, ties counted against the model.

    The rank of a query's t-th best right item is t plus the number of wrong items that score at
    least its score minus the tolerance. Peak memory is that of the inputs and a 2048 x 2048 block.

    Args:
      query: int32 [queries, D] from `unit_grid`.
      gallery: int32 [items, D] from `unit_grid`.
      positives: right items of each query.
      depth: right items beyond this rank add nothing to the average precision; None for no limit.
      tie_tolerance: difference of cosines up to which two items count as tied.

    Returns:
      Ranks of the queries, in the order of `query`.
    """
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"audio and text embeddings must have one width, got {query.shape[1]} and "
            f"{gallery.shape[1]}: were they made by the same model?"
        )
    if not 0 <= tie_tolerance < 1:
        raise UserError(f"tie_tolerance must be in [0, 1), got {tie_tolerance}")
    tolerance = np.rint(tie_tolerance * GRID * GRID)
    starts = np.concatenate([[0], np.cumsum(positives.counts)])
    best = np.empty(len(query), np.int64)
    precision = np.empty(len(query), np.float64)
    places = np.empty(len(positives.items), np.int64)
    for low in range(0, len(query), _BLOCK):
        high = min(low + _BLOCK, len(query))
        rows = query[low:high].astype(np.float64)
        counts = positives.counts[low:high]
        items = positives.items[starts[low] : starts[high]]
        owner = np.repeat(np.arange(high - low), counts)
        scores = _pair_scores(rows, gallery, owner, items)
        # Right items of a query in falling order of score: the t-th of them has t-1 before it.
        order = np.lexsort((-scores, owner))
        scores = scores[order]
        at_least = _count_at_least(rows, gallery, owner, counts, scores - tolerance)
        place = np.arange(len(scores)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        right = _right_at_least(scores, counts, tolerance)
        rank = place + at_least - right
        places[starts[low] + order] = rank
        gain = place / rank
        if depth is not None:
            gain = np.where(rank <= depth, gain, 0.0)
        segments = np.cumsum(counts) - counts
        best[low:high] = rank[segments]
        precision[low:high] = np.add.reduceat(gain, segments) / counts
    return Ranks(best=best, average_precision=precision, places=places)


def _pair_scores(
    rows: NDArray[np.float64],
    gallery: NDArray[np.int32],
    owner: NDArray[np.int64],
    items: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Scores of (query row, gallery row) pairs: integers, equal to those of the blocks below."""
    scores = np.empty(len(items), np.float64)
    for low in range(0, len(items), _BLOCK):
        part = slice(low, low + _BLOCK)
        scores[part] = np.einsum("pd,pd->p", rows[owner[part]], gallery[items[part]], dtype=float)
    return scores


def _count_at_least(
    rows: NDArray[np.float64],
    gallery: NDArray[np.int32],
    owner: NDArray[np.int64],
    counts: NDArray[np.int64],
    thresholds: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Number of gallery items that score at least each threshold of the query that owns it."""
    found = np.zeros(len(thresholds), np.int64)
    firsts = np.cumsum(counts) - counts
    single = np.flatnonzero(counts == 1)
    several = np.flatnonzero(counts > 1)
    for low in range(0, len(gallery), _BLOCK):
        block = rows @ gallery[low : low + _BLOCK].astype(np.float64).T
        if single.size:
            here = firsts[single]
            found[here] += (block[single] >= thresholds[here, None]).sum(axis=1)
        for row in several:
            own = slice(firsts[row], firsts[row] + counts[row])
            in_order = np.sort(block[row])
            found[own] += len(in_order) - np.searchsorted(in_order, thresholds[own], side="left")
    return found


def _right_at_least(
    scores: NDArray[np.float64], counts: NDArray[np.int64], tolerance: float
) -> NDArray[np.int64]:
    """Number of right items of the same query among those counted by `_count_at_least`."""
    right = np.ones(len(scores), np.int64)
    first = 0
    for count in counts:
        if count > 1:
            own = scores[first : first + count]
            right[first : first + count] = np.searchsorted(-own, -own + tolerance, side="right")
        first += count
    return right
