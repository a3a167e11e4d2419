"""Chance levels against enumeration of every possible ranking."""

import itertools
import statistics
from fractions import Fraction

import numpy as np
import pytest

from alm_jax.evaluators.metrics.chance import (
    average_precision_chance,
    median_rank_chance,
    recall_chance,
)

CASES = [(1, [1]), (5, [1]), (6, [1, 1, 2]), (6, [3, 1]), (5, [5, 2]), (7, [2, 2, 4])]


def rankings(gallery: int, positives: int):
    """Every placement of `positives` right items, all equally likely under random order."""
    return list(itertools.combinations(range(1, gallery + 1), positives))


@pytest.mark.parametrize(("gallery", "positives"), CASES)
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_recall_chance_is_that_of_all_rankings(gallery, positives, k):
    """A wrong chance makes a lucky or useless model look like the opposite."""
    exact = Fraction(0)
    for right in positives:
        places = rankings(gallery, right)
        exact += Fraction(sum(min(p) <= k for p in places), len(places)) / len(positives)
    assert recall_chance(gallery, np.array(positives), k) == pytest.approx(float(exact), abs=1e-14)


@pytest.mark.parametrize(("gallery", "positives"), CASES)
@pytest.mark.parametrize("depth", [1, 3, 10, None])
def test_average_precision_chance_is_that_of_all_rankings(gallery, positives, depth):
    """As above, for mAP, whose chance people usually leave out."""
    exact = Fraction(0)
    for right in positives:
        places = rankings(gallery, right)
        for p in places:
            found = sum(
                Fraction(t, rank) for t, rank in enumerate(p, 1) if depth is None or rank <= depth
            )
            exact += found / right / len(places) / len(positives)
    measured = average_precision_chance(gallery, np.array(positives), depth)
    assert measured == pytest.approx(float(exact), abs=1e-14)


@pytest.mark.parametrize(("gallery", "positives"), CASES)
def test_median_rank_chance_is_that_of_all_rankings(gallery, positives):
    """The median rank would be compared with a wrong middle."""
    weight = np.lcm.reduce([len(rankings(gallery, right)) for right in positives])
    best = []
    for right in positives:
        places = rankings(gallery, right)
        best += [min(p) for p in places] * int(weight // len(places))
    assert median_rank_chance(gallery, np.array(positives)) == statistics.median(best)


def test_chance_of_one_positive_in_textbook_form():
    """Anchors: k/G, (G+1)/2, and the harmonic number over G."""
    one = np.ones(880, np.int64)
    assert recall_chance(820, one, 10) == pytest.approx(10 / 820)
    assert median_rank_chance(820, one) == 410.5
    assert median_rank_chance(821, one) == 411
    assert average_precision_chance(820, one, 10) == pytest.approx(
        sum(1 / r for r in range(1, 11)) / 820
    )


def test_chance_at_scale_is_quick_and_finite():
    """A 100k gallery with a caption of 60k clips must neither overflow nor hang."""
    many = np.array([1, 60_000, 100_000])
    assert recall_chance(100_000, many, 10) == pytest.approx(
        (1e-4 + (1 - 0.4**10) + 1) / 3, rel=1e-3
    )
    assert median_rank_chance(100_000, many) == 1.0
    assert 0 < average_precision_chance(100_000, many) < 1
