"""Confidence intervals against plain loops and known answers."""

from __future__ import annotations

import numpy as np
import pytest

from alm_jax.evaluators.metrics import bootstrap
from alm_jax.evaluators.metrics.bootstrap import group_mean_interval, mean_interval, median_interval


def loop(clusters: list[list[float]], statistic) -> tuple[float, float]:
    """The same draws in Python: clips with replacement, the statistic of all their values."""
    ordered = sorted(sorted(own) for own in clusters)
    rng = np.random.default_rng(bootstrap.SEED)
    found = []
    for _ in range(bootstrap.RESAMPLES):
        drawn = rng.integers(0, len(ordered), len(ordered))
        found.append(statistic([value for clip in drawn for value in ordered[clip]]))
    return tuple(np.quantile(found, [0.025, 0.975]))


@pytest.mark.parametrize(
    ("interval", "statistic"), [(mean_interval, np.mean), (median_interval, np.median)]
)
def test_equal_to_a_loop_over_clips(interval, statistic, monkeypatch) -> None:
    """The error bars would be of another statistic, or would take captions for clips."""
    rng = np.random.default_rng(1)
    # The captions of a clip are alike: drawn one by one, the interval would be half as wide.
    clusters = [
        (rng.integers(1, 30) + rng.integers(0, 3, rng.integers(1, 6))).tolist() for _ in range(23)
    ]
    values = [value for own in clusters for value in own]
    owner = np.repeat(np.arange(23), [len(own) for own in clusters])
    found = interval(values, owner)
    low, high = loop(clusters, statistic)
    single = interval(values)
    assert single.high - single.low < 0.8 * (high - low)
    # Clips of unequal size are ordered otherwise than Python orders lists: same draws of the same
    # clips only where sizes are equal, so the ends agree to within the noise of 1,000 draws.
    noise = 0.1 * (high - low)
    assert found.low == pytest.approx(low, abs=noise)
    assert found.high == pytest.approx(high, abs=noise)
    assert tuple(single[:2]) == pytest.approx(loop([[v] for v in values], statistic))
    # How much is computed at a time changes nothing.
    monkeypatch.setattr(bootstrap, "_BLOCK", 50)
    assert interval(values, owner) == pytest.approx(found)


def test_covers_the_truth_as_often_as_it_says() -> None:
    """A 95 % interval that holds the truth 80 % of the time would decide between models."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = mean_interval(rng.random(150) < 0.3)
        hits += found.low <= 0.3 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


def test_captions_of_a_clip_are_drawn_together() -> None:
    """Five captions that succeed and fail together would be taken for five witnesses."""
    hit = np.repeat(np.arange(40) % 2, 5)
    together, apart = mean_interval(hit, np.repeat(np.arange(40), 5)), mean_interval(hit)
    assert together.high - together.low > 1.8 * (apart.high - apart.low)


def test_groups() -> None:
    """The interval of a mean over classes would be that of a mean over clips."""
    rng = np.random.default_rng(2)
    group = rng.choice(3, 90, p=[0.6, 0.3, 0.1])
    value = rng.random(90)
    clip = np.arange(90)
    found = group_mean_interval(clip, group, value)
    mean = np.mean([value[group == g].mean() for g in range(3)])
    order = np.lexsort((value, group))
    draws = np.random.default_rng(0).integers(0, 90, (1000, 90))
    wanted = [
        np.mean([v[g == k].mean() for k in np.unique(g)])
        for v, g in ((value[order][d], group[order][d]) for d in draws)
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(wanted, [0.025, 0.975])))
    assert found.low < mean < found.high
    shuffled = rng.permutation(90)
    assert group_mean_interval(clip, group[shuffled], value[shuffled]) == found


def test_one_clip_has_no_interval() -> None:
    """A spread of nothing would be printed as certainty."""
    assert mean_interval([0.5]) is None
    assert mean_interval([0.5, 0.7], [3, 3]) is None
