"""Nearest neighbours: what frozen embeddings know of classes, with nothing trained at all.

A clip's neighbours are the training clips with the highest cosine; each votes for its classes with
the weight exp(cosine / temperature). Source: Wu et al., Unsupervised Feature Learning via
Non-Parametric Instance Discrimination, CVPR 2018, section 3.4 (temperature 0.07), as used by DINO.
Shapes: n training clips, m clips in question, D width, Y classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.ranking import GRID, unit_grid

PROTOCOL = (
    "votes of the {k} training clips of highest cosine, weighted by exp(cosine / {temperature:g})"
)
TEMPERATURE = 0.07
_BLOCK = 2048  # rows of the table of cosines in memory at a time


def knn_scores(
    train: ArrayLike,
    labels: ArrayLike,
    asked: ArrayLike,
    *,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.float64]:
    """Shares of the votes.

    Args:
      train: embeddings [n, D] of any length.
      labels: bool [n, Y], any number of classes a clip.
      asked: embeddings [m, D].
      neighbours: k. Of several clips with equal cosines the first ones count.
      temperature: above 0.

    Returns:
      float64 [m, Y] in 0..1; 1 where all neighbours have the class.

    Raises:
      UserError: fewer than k training clips, widths that differ, values that are not finite.
    """
    known, queries = unit_grid(train, "training"), unit_grid(asked, "audio")
    votes = np.asarray(labels, np.float64)
    if known.shape[1] != queries.shape[1] or len(votes) != len(known):
        raise UserError(
            f"{len(known)} training embeddings of width {known.shape[1]} with {len(votes)} rows of"
            f" labels, and embeddings of width {queries.shape[1]} to classify: made by one model?"
        )
    if not 1 <= neighbours <= len(known):
        raise UserError(f"{neighbours} neighbours of {len(known)} training clips: take 1 to that")
    scores = np.empty((len(queries), votes.shape[1]))
    # Integers in float64: cosines are exact, so that neither blocks nor BLAS decide a tie.
    gallery = known.T.astype(np.float64)
    for low in range(0, len(queries), _BLOCK):
        cosine = queries[low : low + _BLOCK].astype(np.float64) @ gallery / GRID**2
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :neighbours]
        found = np.take_along_axis(cosine, nearest, axis=1)
        weight = np.exp((found - found[:, :1]) / temperature)
        shares = weight / weight.sum(axis=1, keepdims=True)
        scores[low : low + _BLOCK] = np.einsum("mk,mky->my", shares, votes[nearest])
    return scores
