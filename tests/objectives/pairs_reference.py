"""The contrastive losses over all pairs in float64 NumPy, their slopes by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random float32 rows of norm 1."""
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def ignored(group: Any, rows: int) -> np.ndarray:
    """[B, B] bool: pairs of different rows of one group."""
    if group is None:
        return np.zeros((rows, rows), bool)
    same = np.asarray(group)[:, None] == np.asarray(group)[None, :]
    return same & ~np.eye(rows, dtype=bool)


def info_nce(audio: Any, text: Any, scale: Any, group: Any, smoothing: float) -> list[float]:
    """Both cross-entropies, row by row over the pairs that count."""
    logits = float(scale) * np.float64(audio) @ np.float64(text).T
    gone = ignored(group, len(logits))
    directions = []
    for scores in (logits, logits.T):
        losses = []
        for row, row_scores in enumerate(scores):
            counted = ~gone[row]
            log_p = row_scores - np.log(np.exp(row_scores[counted]).sum())
            target = smoothing / counted.sum() * counted
            target[row] += 1 - smoothing
            losses.append(-np.sum(target[counted] * log_p[counted]))
        directions.append(np.mean(losses))
    return directions


def sigmoid(audio: Any, text: Any, scale: Any, bias: Any, group: Any) -> float:
    """The sum over a clip's pairs of -log p(its kind), a mean over the clips."""
    logits = float(scale) * np.float64(audio) @ np.float64(text).T + float(bias)
    kind = 2 * np.eye(len(logits)) - 1
    loss = np.log1p(np.exp(-kind * logits))
    return float(loss[~ignored(group, len(logits))].sum() / len(logits))


def slopes(loss: Callable[..., float], arguments: Sequence[Any]) -> list[np.ndarray]:
    """Central differences of loss(*arguments) by every entry of every argument."""
    found = []
    for number, argument in enumerate(arguments):
        slope = np.zeros(np.shape(argument))
        for place in np.ndindex(slope.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [np.array(x, np.float64) for x in arguments]
                moved[number][place] += step
                ends.append(loss(*moved))
            slope[place] = (ends[0] - ends[1]) / 2e-5
        found.append(slope)
    return found
