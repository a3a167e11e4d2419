"""The largest global batch whose step fits into a chip's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

# How many sizes are compiled at most beside the one that was asked for, how much larger than all
# before the next one may be, and by how much it must be larger than what fits to be worth it.
_COMPILATIONS = 5
_STRIDE = 8
_WORTH = 1.03


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The answer, and how it was found.

    Attributes:
      batch_size: global, compiled; 0 if not even the smallest fits.
      needed: bytes of a chip at that size.
      compiled_at: all sizes that were compiled.
      too_large: the smallest of them that did not fit, or None.
    """

    batch_size: int
    needed: int
    compiled_at: tuple[int, ...]
    too_large: int | None


def find_largest(
    batch: int, peak: int, measure: Callable[[int], int], capacity: int, *, step: int
) -> LargestBatch:
    """Follows the line through two compiled sizes to the chip's memory, and compiles what it says.

    Args:
      batch: a global batch size.
      peak: bytes that a chip needs for it.
      measure: compiles another size: bytes that a chip needs for it.
      capacity: bytes of a chip.
      step: sizes are multiples of it.
    """
    peaks = {batch: peak}
    guess = max(step, batch // 2 // step * step)
    if guess == batch:
        guess = 2 * batch
    for _ in range(_COMPILATIONS):
        peaks[guess] = measure(guess)
        fitting = [size for size in peaks if peaks[size] <= capacity]
        guess = _follow(peaks, capacity, step)
        if guess in peaks or guess < (_WORTH * max(fitting) if fitting else step):
            break
    best = max(fitting, default=0)
    too_large = min((size for size in peaks if peaks[size] > capacity), default=None)
    return LargestBatch(best, peaks.get(best, 0), tuple(sorted(peaks)), too_large)


def _follow(peaks: dict[int, int], capacity: int, step: int) -> int:
    """Where the line through the two sizes around the capacity, or nearest to it, reaches it."""
    sizes = sorted(peaks)
    below = [size for size in sizes if peaks[size] <= capacity]
    above = [size for size in sizes if peaks[size] > capacity]
    if below and above:
        small, large = below[-1], above[0]
    else:
        small, large = sizes[-2:] if below else sizes[:2]
    low, high = peaks[small], peaks[large]
    if large <= small or high <= low:  # what is needed does not grow with the batch
        return _STRIDE * sizes[-1] if not above else 0
    size = int(small + (capacity - low) * (large - small) / (high - low)) // step * step
    size = min(size, _STRIDE * sizes[-1])
    return min(size, above[0] - step) if above else size
