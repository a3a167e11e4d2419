"""A linear baseline: ridge regression from statistics of the sound to TF-IDF of the caption.

It learns in half a minute on one core. A trained model that loses to it on the same split has
learned nothing worth exporting.

Two strengths of the same regression are offered. Plain: cosines between the predicted and the true
(centred) TF-IDF, in which frequent n-grams ("a person says in") have most of the say. Whitened:
the text side is first multiplied by a square root of `(YᵀY + gI)^-1`, Y being the centred TF-IDF of
the training captions, so that every direction in which captions differ counts alike. That is
regularised canonical correlation analysis up to the scale of the audio side, and much the stronger.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.caption_words import tokenise
from alm_jax.evaluators.metrics.ranking import check_embeddings
from alm_jax.evaluators.metrics.retrieval import distinct_captions, retrieval_metrics

RIDGE_STRENGTHS = (30.0, 100.0, 300.0, 1000.0)
WHITENING_STRENGTHS = (0.3, 1.0, 3.0)
MAX_NGRAMS = 2048
_CLIP = 5.0  # standard deviations; a few odd clips must not steer the regression


@dataclass(frozen=True)
class TfIdf:
    """Word (1-2) and character (1-3, inside words) n-grams, weighted and of length one.

    Attributes:
      index: column of each n-gram.
      idf: float64 [columns].
    """

    index: dict[str, int]
    idf: NDArray[np.float64]

    @classmethod
    def fit(cls, texts: Sequence[str], max_ngrams: int = MAX_NGRAMS) -> "TfIdf":
        """Takes the n-grams that occur in most texts, and in two at least."""
        documents: Counter[str] = Counter()
        for text, times in Counter(texts).items():
            for gram in _ngrams(text):
                documents[gram] += times
        ranked = sorted(documents.items(), key=lambda entry: (-entry[1], entry[0]))
        kept = [(gram, count) for gram, count in ranked[:max_ngrams] if count >= 2]
        if not kept:
            raise UserError("no word or character n-gram occurs in two training captions")
        counts = np.array([count for _, count in kept], np.float64)
        idf = np.log((1 + len(texts)) / (1 + counts)) + 1
        return cls({gram: column for column, (gram, _) in enumerate(kept)}, idf)

    def transform(self, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        """Sparse float64 [texts, columns]; (1 + log count) * idf, rows of length one."""
        distinct, row_of = distinct_captions(texts)
        rows, columns, values = [], [], []
        for row, text in enumerate(distinct):
            for gram, count in _ngrams(text).items():
                column = self.index.get(gram)
                if column is not None:
                    rows.append(row)
                    columns.append(column)
                    values.append((1 + np.log(count)) * self.idf[column])
        shape = (len(distinct), len(self.idf))
        matrix = scipy.sparse.csr_matrix((values, (rows, columns)), shape=shape)
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        scaled = scipy.sparse.diags_array(1 / np.maximum(length, 1e-12)) @ matrix
        return scipy.sparse.csr_matrix(scaled)[row_of]


@dataclass(frozen=True)
class LinearBaseline:
    """A fitted baseline; it embeds sounds and captions like any other model.

    Attributes:
      tfidf: the text features.
      text_mean: [V] mean TF-IDF of the training captions.
      factor: lower triangular [V, V] with `factor factorᵀ = YᵀY + gI`; None if not whitened.
      audio_mean: [K] of the clip statistics.
      audio_scale: [K] their standard deviation, infinite where a statistic never changes.
      weights: [K, V].
      ridge: the chosen strength of the regression.
      whitening: the chosen g, None if not whitened.
    """

    tfidf: TfIdf
    text_mean: NDArray[np.float64]
    factor: NDArray[np.float64] | None
    audio_mean: NDArray[np.float64]
    audio_scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    ridge: float
    whitening: float | None

    def embed_audio(self, statistics: ArrayLike) -> NDArray[np.float64]:
        """Clip statistics [n, K] -> embeddings [n, V]."""
        return _standardise(statistics, self.audio_mean, self.audio_scale) @ self.weights

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Captions -> embeddings [m, V]."""
        return _whiten(self.factor, self.tfidf.transform(texts).toarray() - self.text_mean)


def fit_linear_baseline(
    train_statistics: ArrayLike,
    train_texts: Sequence[str],
    validation_statistics: ArrayLike,
    validation_texts: Sequence[str],
    *,
    whiten: bool = True,
    ridge_strengths: Sequence[float] = RIDGE_STRENGTHS,
    whitening_strengths: Sequence[float] = WHITENING_STRENGTHS,
) -> LinearBaseline:
    """Fits on the training split; the strengths are those best on the validation split.

    Best means the highest sum of audio->text and text->audio mAP@10.

    Args:
      train_statistics: [n, K] from `alm_jax.evaluators.linear.clip_statistics`.
      train_texts: n captions.
      validation_statistics: [v, K].
      validation_texts: v captions.
      whiten: see the module's docstring.
      ridge_strengths: candidates, in units of one standardised training clip.
      whitening_strengths: candidates for g.

    Returns:
      The fitted model.

    Raises:
      UserError: sizes that differ, no clips, or values that are not finite.
    """
    raw = _checked(train_statistics, train_texts, "training")
    held_out = _checked(validation_statistics, validation_texts, "validation")
    mean, scale = raw.mean(axis=0), raw.std(axis=0)
    # A statistic that never changes tells nothing; an infinite scale turns it off.
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1.0), scale, np.inf)
    audio = _standardise(raw, mean, scale)
    tfidf = TfIdf.fit(train_texts)
    text = tfidf.transform(train_texts)
    text_mean = np.asarray(text.mean(axis=0)).ravel()
    # Not quite zero after clipping, so the mean of the targets must be taken off explicitly.
    offset = audio.sum(axis=0)
    cross = np.asarray((text.T @ audio).T) - np.outer(offset, text_mean)
    power, axes = np.linalg.eigh(audio.T @ audio)
    captions, caption_of_clip = distinct_captions(validation_texts)
    best: tuple[float, LinearBaseline] | None = None
    for whitening in whitening_strengths if whiten else (None,):
        factor = None if whitening is None else _factor(text, text_mean, whitening)
        target = axes.T @ _whiten(factor, cross)
        held_out_text = _whiten(factor, tfidf.transform(captions).toarray() - text_mean)
        for ridge in ridge_strengths:
            weights = (axes / (np.maximum(power, 0) + ridge)) @ target
            model = LinearBaseline(
                tfidf, text_mean, factor, mean, scale, weights, float(ridge), whitening
            )
            rows = retrieval_metrics(
                model.embed_audio(held_out), held_out_text, caption_of_clip, prefix=""
            )
            score = sum(row["value"] for name, row in rows.items() if name.endswith("mAP@10"))
            if best is None or score > best[0]:
                best = (score, model)
    if best is None:
        raise UserError("the linear baseline needs at least one ridge and one whitening strength")
    return best[1]


def linear_baseline(
    train_statistics: ArrayLike,
    train_texts: Sequence[str],
    test_statistics: ArrayLike,
    test_texts: Sequence[str],
    *,
    validation_statistics: ArrayLike,
    validation_texts: Sequence[str],
    whiten: bool = True,
    prefix: str = "baseline/linear",
) -> dict[str, dict[str, Any]]:
    """Fits the baseline and scores it as any model is scored.

    Args:
      train_statistics: [n, K] from `alm_jax.evaluators.linear.clip_statistics`.
      train_texts: n captions.
      test_statistics: [t, K].
      test_texts: t captions.
      validation_statistics: [v, K], to choose the strengths.
      validation_texts: v captions.
      whiten: see the module's docstring.
      prefix: names start with it.

    Returns:
      The rows of `retrieval_metrics`, the chosen strengths added to `protocol`.

    Raises:
      UserError: as `fit_linear_baseline` and `retrieval_metrics`.
    """
    test = _checked(test_statistics, test_texts, "test")
    model = fit_linear_baseline(
        train_statistics, train_texts, validation_statistics, validation_texts, whiten=whiten
    )
    captions, caption_of_clip = distinct_captions(test_texts)
    rows = retrieval_metrics(
        model.embed_audio(test), model.embed_text(captions), caption_of_clip, prefix=prefix
    )
    whitening = "" if model.whitening is None else f", whitened with {model.whitening:g}"
    for row in rows.values():
        row["protocol"] += f"; ridge {model.ridge:g}{whitening}, chosen on validation"
    return rows


def _checked(statistics: ArrayLike, texts: Sequence[str], split: str) -> NDArray[np.float64]:
    array = check_embeddings(statistics, f"{split} clip statistics used as")
    if len(array) != len(texts):
        raise UserError(f"{split}: {len(array)} clips but {len(texts)} captions")
    return array


def _standardise(
    statistics: ArrayLike, mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.clip((np.asarray(statistics, np.float64) - mean) / scale, -_CLIP, _CLIP)


def _factor(
    text: scipy.sparse.csr_matrix, text_mean: NDArray[np.float64], strength: float
) -> NDArray[np.float64]:
    """Cholesky factor of the captions' centred Gram matrix; any square root gives its cosines."""
    gram = (text.T @ text).toarray() - text.shape[0] * np.outer(text_mean, text_mean)
    gram[np.diag_indices_from(gram)] += strength
    return scipy.linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)


def _whiten(factor: NDArray[np.float64] | None, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if factor is None:
        return rows
    return scipy.linalg.solve_triangular(factor, rows.T, lower=True, check_finite=False).T


def _ngrams(text: str) -> Counter[str]:
    words = tokenise(unicodedata.normalize("NFKC", text))
    grams = Counter(f"w {word}" for word in words)
    grams.update(f"w {first} {second}" for first, second in pairwise(words))
    for word in words:
        grams.update(_characters(word))
    return grams


@lru_cache(maxsize=1 << 16)
def _characters(word: str) -> tuple[str, ...]:
    padded = f" {word} "
    return tuple(
        f"c {padded[start : start + n]}" for n in (1, 2, 3) for start in range(len(padded) - n + 1)
    )
