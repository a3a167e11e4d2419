"""Nearest neighbours against a loop in float64."""

import math

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.knn import knn_scores

RNG = np.random.default_rng(0)
TRAIN, ASKED = RNG.standard_normal((40, 6)), RNG.standard_normal((9, 6))
LABELS = RNG.random((40, 5)) < 0.3


def loop(k, temperature):
    rows = []
    for query in ASKED:
        cosines = []
        for place, known in enumerate(TRAIN):
            dot = sum(a * b for a, b in zip(query, known, strict=True))
            length = math.sqrt(sum(a * a for a in query) * sum(b * b for b in known))
            cosines.append((dot / length, place))
        best = sorted(cosines, reverse=True)[:k]
        weights = [math.exp(cosine / temperature) for cosine, _ in best]
        total = [
            sum(w for w, (_, place) in zip(weights, best, strict=True) if LABELS[place, y])
            for y in range(5)
        ]
        rows.append([value / sum(weights) for value in total])
    return rows


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (40, 1.0)])
def test_votes_against_a_loop(k, temperature):
    """Numbers could not be compared with those of other k-NN evaluations."""
    found = knn_scores(3.0 * TRAIN, LABELS, ASKED, neighbours=k, temperature=temperature)
    # Embeddings are rounded to 2^-25, divided by the temperature.
    np.testing.assert_allclose(found, loop(k, temperature), atol=2e-6)


def test_ties_do_not_depend_on_blocks(monkeypatch):
    """The number would change with the memory of the machine."""
    train, labels = np.repeat(TRAIN[:4], 10, axis=0), LABELS
    whole = knn_scores(train, labels, ASKED, neighbours=5)
    monkeypatch.setattr("alm_jax.evaluators.metrics.knn._BLOCK", 2)
    np.testing.assert_array_equal(knn_scores(train, labels, ASKED, neighbours=5), whole)
    nearest = np.argmax(ASKED @ TRAIN[:4].T / np.linalg.norm(TRAIN[:4], axis=1), axis=1)
    np.testing.assert_allclose(whole, [labels[10 * n : 10 * n + 5].mean(axis=0) for n in nearest])


def test_what_is_wrong_is_named():
    """A user with fewer clips than neighbours would see an error of numpy."""
    with pytest.raises(UserError, match=r"41 neighbours of 40 training clips"):
        knn_scores(TRAIN, LABELS, ASKED, neighbours=41)
    with pytest.raises(UserError, match=r"width 6.*width 5"):
        knn_scores(TRAIN, LABELS, ASKED[:, :5], neighbours=3)
