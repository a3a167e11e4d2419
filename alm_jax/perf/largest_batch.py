"""The largest global batch whose step fits into a chip's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from alm_jax.perf.compiling import Compiled, OverFull

# The batch is halved at most as often as this before the state alone is said to be too large.
_HALVINGS = 6


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The answer, and how it was found.

    Attributes:
      batch_size: global; 0 if not even the smallest fits.
      needed: bytes of a chip at that size.
      how: "compiled" if that very size was compiled, else "extrapolated" from those below.
      compiled_at: global batch sizes that were compiled and fit.
      too_large: the smallest size that was compiled and did not fit, or None.
    """

    batch_size: int
    needed: int
    how: str
    compiled_at: tuple[int, ...]
    too_large: int | None


def find_largest(
    batch: int,
    outcome: Compiled | OverFull,
    measure: Callable[[int], Compiled | OverFull],
    capacity: int,
    *,
    step: int,
) -> LargestBatch:
    """Extends the line through two compiled sizes to the chip's memory, and compiles what it says.

    Args:
      batch: a global batch size.
      outcome: of its compilation.
      measure: compiles another size.
      capacity: bytes of a chip.
      step: sizes are multiples of it.
    """
    fitting: dict[int, int] = {}
    too_large: int | None = None

    def record(size: int, result: Compiled | OverFull) -> None:
        nonlocal too_large
        if isinstance(result, Compiled):
            fitting[size] = result.peak
        else:
            too_large = min(size, too_large or size)

    record(batch, outcome)
    size = batch
    for _ in range(_HALVINGS):
        if len(fitting) >= 2 or size <= step:
            break
        size = max(step, size // 2 // step * step)
        record(size, measure(size))
    if not fitting:
        return LargestBatch(0, 0, "compiled", (), too_large)
    if len(fitting) < 2:
        # One row a device fits: look above it.
        other = 2 * max(fitting)
        if other != too_large:
            record(other, measure(other))
    guess = _extrapolate(fitting, capacity, step, too_large)
    if guess not in fitting:
        record(guess, measure(guess))
    how = "compiled"
    if guess not in fitting:
        # The line was too steep near the limit: a tenth less, which nobody has compiled.
        smaller = max(max(fitting), guess * 9 // 10 // step * step)
        how = "compiled" if smaller in fitting else "extrapolated"
        guess = smaller
    needed = fitting.get(guess) or round(_line(fitting, guess))
    return LargestBatch(guess, needed, how, tuple(sorted(fitting)), too_large)


def _line(fitting: dict[int, int], size: int) -> float:
    (small, low), (large, high) = sorted(fitting.items())[-2:]
    return low + (high - low) / (large - small) * (size - small)


def _extrapolate(fitting: dict[int, int], capacity: int, step: int, too_large: int | None) -> int:
    best = max(fitting)
    if len(fitting) < 2:
        return best
    (small, low), (large, high) = sorted(fitting.items())[-2:]
    if high <= low:
        return best
    guess = int(small + (capacity - low) * (large - small) / (high - low)) // step * step
    if too_large is not None:
        guess = min(guess, too_large - step)
    return max(guess, best)
