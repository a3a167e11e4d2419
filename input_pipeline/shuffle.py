"""The endless order of one source: position -> which visit to which example.

Shuffled, each epoch holding every example once, or drawn by weight.
"""

from typing import Any

import grain
import numpy as np

# Up to here an epoch's order is kept as a list (half a megabyte at most). grain's shuffle keeps
# none, but walks a cycle through at least 2**16 numbers to find one that is in range: measured
# 6 microseconds an example for 9,000 examples, 50 for 1,000, 12,000 for 4.
_LISTED_EXAMPLES = 2**16


def shuffled_visits(source: int, num_examples: int, *, seed: int) -> grain.MapDataset:
    """Returns the endless dataset of visits (source, epoch, index), for `grain.MapDataset.mix`.

    Positions e*n ... e*n + n - 1 visit each of the n examples once, in an order of epoch e's own.

    Args:
      source: number of the source, handed through.
      num_examples: n.
      seed: of the order, 0 ... 2**32 - 1. Neighbouring seeds share orders where n is above 65,536
        (grain adds the epoch to its seed), so pass a hash.
    """
    if num_examples <= _LISTED_EXAMPLES:
        # The longest length that grain's `repeat` gives a dataset, too.
        positions = grain.MapDataset.range(2**63 - 1)
        return positions.map(_ListedOrder(source, num_examples, seed))
    numbered = grain.MapDataset.range(num_examples).map_with_index(_Visit(source, num_examples))
    return numbered.shuffle(seed=seed).repeat()


def weighted_visits(source: int, weights: np.ndarray, *, seed: int) -> grain.MapDataset:
    """Returns an endless dataset of visits (source, position, index), drawn with replacement.

    Each position is a draw of its own, from the seed and the position alone, so that any number of
    hosts may ask for any position. There are no epochs: the position stands in their place.

    Source: AudioMAE `main_finetune_as.py`. Its script asks for draws without replacement, by a flag
    whose value "False" its parser reads as True.

    Args:
      source: number of the source, handed through.
      weights: float64 [n], >= 0, not all 0; an example comes in proportion to its own.
      seed: 0 ... 2**32 - 1.
    """
    return grain.MapDataset.range(2**63 - 1).map(_WeightedOrder(source, np.cumsum(weights), seed))


class _WeightedOrder:
    """Position -> visit, from the running sum of weights."""

    def __init__(self, source: int, upto: np.ndarray, seed: int) -> None:
        self._source = source
        self._upto = upto
        self._seed = seed

    def __call__(self, position: int) -> tuple[int, int, int]:
        # The 1 sets the stream apart from the one that orders epochs.
        generator = np.random.Philox(key=self._seed, counter=[0, 0, position, 1])
        place = (int(generator.random_raw()) >> 11) * 2.0**-53 * self._upto[-1]
        return self._source, position, int(np.searchsorted(self._upto, place, side="right"))


class _ListedOrder:
    """Position -> visit, from a list of the epoch's order."""

    def __init__(self, source: int, num_examples: int, seed: int) -> None:
        self._source = source
        self._num_examples = num_examples
        self._seed = seed
        # The last even and the last odd epoch: threads that read ahead are in two at a time.
        self._kept: dict[int, tuple[int, np.ndarray]] = {}

    def __call__(self, position: int) -> tuple[int, int, int]:
        epoch, place = divmod(position, self._num_examples)
        kept, order = self._kept.get(epoch % 2, (-1, None))
        if kept != epoch or order is None:
            # Raw words, since numpy promises their stream for ever, that of `permutation` not.
            generator = np.random.Philox(key=self._seed, counter=[0, 0, epoch, 0])
            order = np.argsort(generator.random_raw(self._num_examples), kind="stable")
            self._kept[epoch % 2] = epoch, order
        return self._source, epoch, int(order[place])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


class _Visit:
    """Notes which epoch a position of grain's shuffled order belongs to."""

    def __init__(self, source: int, num_examples: int) -> None:
        self._source = source
        self._num_examples = num_examples

    def __call__(self, position: int, index: int) -> tuple[int, int, int]:
        return self._source, position // self._num_examples, index
