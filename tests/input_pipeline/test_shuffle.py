"""Shuffle: every clip once an epoch, another order each epoch, quick at any size."""

import pickle
import time

import numpy as np
import pytest

from input_pipeline import shuffle


@pytest.mark.parametrize("listed", [0, 2**16])
@pytest.mark.parametrize("num_examples", [1, 2, 37, 1000])
def test_visits(listed: int, num_examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of shuffling must visit each clip once an epoch and know which epoch it is."""
    monkeypatch.setattr(shuffle, "_LISTED_EXAMPLES", listed)
    epochs = 1 if num_examples < 10 and not listed else 4  # grain's is slow at such sizes
    visits = shuffle.shuffled_visits(5, num_examples, seed=3)
    seen = [visits[position] for position in range(epochs * num_examples)]
    assert {visit[0] for visit in seen} == {5}
    assert [visit[1] for visit in seen] == [i // num_examples for i in range(len(seen))]
    orders = np.array([visit[2] for visit in seen]).reshape(epochs, num_examples)
    assert (np.sort(orders, 1) == np.arange(num_examples)).all()
    if num_examples > 2:
        assert len(np.unique(orders, axis=0)) == epochs


def test_large_sources_keep_no_list() -> None:
    """An order kept as a list would cost every worker of every host 8 bytes a clip."""
    visits = shuffle.shuffled_visits(0, 10**9, seed=3)
    assert len(pickle.dumps(visits)) < 2000
    start = time.process_time()
    found = {visits[position][2] for position in range(200)}
    assert len(found) == 200 and max(found) < 10**9
    assert time.process_time() - start < 1


def test_small_sources_are_quick() -> None:
    """A trial on four sounds must not wait seconds for the order of one batch (grain's: 3 s)."""
    visits = shuffle.shuffled_visits(0, 4, seed=3)
    start = time.process_time()
    for position in range(256):
        visits[position]
    assert time.process_time() - start < 0.5


def test_any_access_pattern_gives_the_same_order() -> None:
    """Threads, hosts and restarts ask for positions in any order."""
    visits = shuffle.shuffled_visits(0, 50, seed=3)
    forward = [visits[position] for position in range(500)]
    scattered = np.random.default_rng(0).permutation(500)
    copy = pickle.loads(pickle.dumps(visits))
    assert [copy[int(position)] for position in scattered] == [forward[p] for p in scattered]
    other = shuffle.shuffled_visits(0, 50, seed=4)
    assert [other[position] for position in range(50)] != forward[:50]


def test_order_is_fair() -> None:
    """A shuffle that favours neighbours would fill batches with clips of one shard."""
    visits = shuffle.shuffled_visits(0, 20, seed=1)
    orders = np.array([visits[position][2] for position in range(20 * 2000)]).reshape(2000, 20)
    counts = np.zeros((20, 20))
    np.add.at(counts, (np.arange(20), orders), 1)
    # Each clip in each place 100 times; five standard deviations.
    assert abs(counts - 100).max() < 50
    neighbours = (np.diff(orders, axis=1) == 1).mean()
    assert neighbours == pytest.approx(1 / 20, abs=0.01)
