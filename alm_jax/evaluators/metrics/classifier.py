"""A trained classifier's answers: accuracy, mean average precision, area under the ROC curve.

Average precision takes equal scores as one step, as scikit-learn does and with it AudioMAE's
`util/stat.py`, whose numbers it gives; the mean is over the classes that have a clip.
Shapes: n clips, Y classes.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.chance import average_precision_chance
from alm_jax.evaluators.results import Row

PROTOCOL = (
    "classifier-v1: highest logit, ties lose; mAP and AUC over classes with clips, equal scores"
    " are one step"
)


def average_precision(scores: NDArray, right: NDArray[np.bool_]) -> float:
    """Of one class: the sum over thresholds of (recall - recall before) * precision.

    Args:
      scores: float [n].
      right: bool [n], at least one of them True.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(right[order])[ends]
    return float(np.sum(np.diff(found, prepend=0) * found / (ends + 1)) / found[-1])


def area_under_roc(scores: NDArray, right: NDArray[np.bool_]) -> float:
    """Of one class: the chance that a clip of it scores above one of the others, ties by half."""
    ranks = scipy.stats.rankdata(scores)[right]
    return float((ranks.mean() - (len(ranks) + 1) / 2) / (len(scores) - len(ranks)))


def classifier_metrics(logits: ArrayLike, labels: ArrayLike, *, prefix: str) -> dict[str, Row]:
    """Scores logits against labels.

    Args:
      logits: [n, Y].
      labels: bool [n, Y], any number of classes a clip.
      prefix: names start with it.

    Returns:
      Rows `{prefix}/accuracy` (labelled clips whose highest logit is that of one of their classes),
      `{prefix}/mAP`, `{prefix}/mAUC`. A class without a clip, or with all, takes no part in the
      last two; `n_classes` says how many do.

    Raises:
      UserError: logits that are not finite, or no clip with a class.
    """
    scores, right = np.asarray(logits, np.float64), np.asarray(labels, bool)
    if scores.shape != right.shape:
        raise ValueError(f"logits {scores.shape} and labels {right.shape}")
    if not np.isfinite(scores).all():
        raise UserError(f"{prefix}: the classifier's logits hold NaN or infinite values")
    labelled = right.any(axis=1)
    counts = right.sum(axis=0)
    present = np.flatnonzero((counts > 0) & (counts < len(right)))
    if not present.size:
        raise UserError(f"{prefix}: no class that some clips have and others have not")
    top = scores[labelled] == scores[labelled].max(axis=1, keepdims=True)
    hits = (top & right[labelled]).any(axis=1) & (top.sum(axis=1) == 1)
    each = [(scores[:, y], right[:, y]) for y in present]
    values = {
        "accuracy": (hits.mean(), right[labelled].sum(axis=1).mean() / right.shape[1]),
        "mAP": (
            math.fsum(average_precision(*one) for one in each) / len(each),
            average_precision_chance(len(right), counts[present]),
        ),
        "mAUC": (math.fsum(area_under_roc(*one) for one in each) / len(each), 0.5),
    }
    return {
        f"{prefix}/{name}": {
            "value": float(value),
            "chance": float(chance),
            "unit": "fraction",
            "n_clips": int(labelled.sum() if name == "accuracy" else len(right)),
            "n_classes": int(right.shape[1] if name == "accuracy" else len(present)),
            "protocol": PROTOCOL,
        }
        for name, (value, chance) in values.items()
    }
