"""A baseline without a neural network: ridge regression from log-mel statistics to caption terms.

A sound is described by statistics of its log-mel bands, a caption by the TF-IDF weights of its
letter n-grams (n = 1..3, blanks included, so that every script and language is covered); a linear
map is fitted from one to the other. Retrieval then works as for a model: the mapped sound and the
caption's vector are compared by cosine.

There are two strengths of it. `bands` takes what is known of each band by itself (mean, deviation,
maximum, change from frame to frame, the means of eight equal parts of the clip) and the duration;
`covariances` adds how the bands go together (covariances of 24 cepstral coefficients) and how fast
the spectrum's shape changes. A model that loses to the first has learned nothing worth keeping; one
that beats the second hears more than a spectrum's outline.

Shapes: n clips, m captions, T frames, F mel bins, K statistics, V terms.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import NDArray

from alm_jax.audio.frontend import FLAVOURS, log_mel, num_frames, pcm_to_float
from alm_jax.evaluators.retrieval import distinct_captions

FEATURES = ("bands", "covariances")
PROTOCOL = (
    "ridge-v1 ({features}): statistics of 128 log-mel bands of the first 10 s -> TF-IDF of letter "
    "1- to 3-grams, penalty {penalty:g} chosen on validation"
)
PENALTIES = (10.0, 100.0, 300.0, 1000.0, 3000.0)
_FRONTEND = FLAVOURS["cacophony"]
_SIZES = (10240, 40960, 160000)  # samples that clips are padded to; 10 s of longer ones count
_BATCH = 64
_PARTS = 8
_CEPSTRA, _COVARIANCES = 40, 24


@jax.jit
def _statistics(audio: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two groups of statistics, [B, K1] and [B, K2], of PCM [B, S] int16 of `length` [B]."""
    mel = log_mel(pcm_to_float(audio), _FRONTEND, length=length)
    frames = jnp.maximum(num_frames(length, _FRONTEND), 1)
    place = jnp.arange(mel.shape[1])[None, :]
    valid = place < frames[:, None]

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        weight = where[..., None].astype(jnp.float32)
        return (values * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)

    def deviation(values: jax.Array, where: jax.Array) -> jax.Array:
        squares = (values - mean(values, where)[:, None]) ** 2
        return jnp.sqrt(mean(squares, where) + 1e-12)

    bands = [
        mean(mel, valid),
        deviation(mel, valid),
        jnp.where(valid[..., None], mel, -jnp.inf).max(1),
        mean(jnp.abs(jnp.diff(mel, axis=1)), valid[:, 1:]),
        jnp.log(length.astype(jnp.float32))[:, None],
    ]
    part = place * _PARTS // frames[:, None]
    bands += [mean(mel, valid & (part == number)) for number in range(_PARTS)]
    basis = scipy.fft.dct(np.eye(_FRONTEND.num_mels, dtype=np.float32), norm="ortho")
    cepstra = mel @ basis[:, :_CEPSTRA]
    centred = (cepstra - mean(cepstra, valid)[:, None])[..., :_COVARIANCES]
    centred = jnp.where(valid[..., None], centred, 0.0)
    covariance = jnp.einsum("bti,btj->bij", centred, centred) / frames[:, None, None]
    upper = np.triu_indices(_COVARIANCES)
    covariance = covariance[:, upper[0], upper[1]]
    shapes = [
        deviation(cepstra, valid),
        deviation(jnp.diff(cepstra, axis=1), valid[:, 1:]),
        deviation(cepstra[:, 4:] - cepstra[:, :-4], valid[:, 4:]),
        # Square roots: otherwise the few loudest clips would decide the fit.
        jnp.sign(covariance) * jnp.sqrt(jnp.abs(covariance)),
    ]
    return jnp.concatenate(bands, axis=1), jnp.concatenate(shapes, axis=1)


def log_mel_statistics(clips: Iterable[NDArray[np.int16]]) -> dict[str, NDArray[np.float32]]:
    """Statistics of clips of int16 PCM [S] at 16 kHz.

    Returns:
      For each of `FEATURES` float32 [n, K]; `covariances` contains `bands`.
    """
    rows: dict[int, tuple[NDArray, NDArray]] = {}
    waiting: dict[int, list[tuple[int, NDArray[np.int16]]]] = collections.defaultdict(list)

    def run(size: int) -> None:
        members = waiting.pop(size)
        audio, length = np.zeros((_BATCH, size), np.int16), np.ones(_BATCH, np.int32)
        for row, (_, clip) in enumerate(members):
            audio[row, : len(clip)], length[row] = clip, len(clip)
        found = (np.asarray(group) for group in _statistics(audio, length))
        for (number, _), bands, shapes in zip(members, *found, strict=False):
            rows[number] = bands, shapes

    for number, clip in enumerate(clips):
        clip = clip[: _SIZES[-1]]
        size = next(size for size in _SIZES if size >= len(clip))
        waiting[size].append((number, clip))
        if len(waiting[size]) == _BATCH:
            run(size)
    for size in list(waiting):
        run(size)
    bands, shapes = (np.stack([rows[n][group] for n in range(len(rows))]) for group in (0, 1))
    return {"bands": bands, "covariances": np.concatenate([bands, shapes], axis=1)}


class TfIdf:
    """Weights of the letter 1- to 3-grams that stand in at least two training captions."""

    def __init__(self, captions: Sequence[str]):
        """Counts the terms of the training captions."""
        counts = collections.Counter(term for text in captions for term in set(_terms(text)))
        kept = sorted(term for term, count in counts.items() if count > 1)
        self._column = {term: column for column, term in enumerate(kept)}
        self._idf = [1 + np.log((1 + len(captions)) / (1 + counts[term])) for term in kept]

    def __call__(self, captions: Sequence[str]) -> scipy.sparse.csr_array:
        """Float32 rows [m, V] of length one; zero where a caption has no known term."""
        rows, columns, values = [], [], []
        for row, text in enumerate(captions):
            counts = collections.Counter(t for t in _terms(text) if t in self._column)
            found = [self._column[term] for term in counts]
            weights = [
                (1 + np.log(count)) * self._idf[column]
                for count, column in zip(counts.values(), found, strict=True)
            ]
            norm = np.linalg.norm(weights) if weights else 1.0
            rows += [row] * len(found)
            columns += found
            values += [weight / norm for weight in weights]
        shape = (len(captions), len(self._column))
        return scipy.sparse.csr_array((np.asarray(values, np.float32), (rows, columns)), shape)


def _terms(text: str) -> list[str]:
    padded = f" {text.lower()} "
    return [padded[i : i + n] for n in (1, 2, 3) for i in range(len(padded) - n + 1)]


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A fitted baseline.

    Attributes:
      tfidf: captions -> [m, V].
      mean: of the statistics [K].
      scale: their deviation [K].
      weights: float32 [K, V].
      penalty: weight of the squared norm of `weights`.
    """

    tfidf: TfIdf
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]
    penalty: float

    def embed_audio(self, statistics: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, V] from statistics [n, K]: the difference from the mean caption, not normalised."""
        return (statistics - self.mean) / self.scale @ self.weights

    def embed_text(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """[m, V], rows of length one."""
        return self.tfidf(captions).toarray()


def fit_ridge(
    statistics: NDArray[np.float32],
    captions: Sequence[str],
    validation_statistics: NDArray[np.float32],
    validation_captions: Sequence[str],
) -> Ridge:
    """Fits the map for every penalty and keeps the one with the best R@10 on validation.

    Args:
      statistics: [n, K] of the training clips.
      captions: their n captions.
      validation_statistics: [k, K].
      validation_captions: k captions.
    """
    tfidf = TfIdf(captions)
    mean, scale = statistics.mean(0), statistics.std(0) + 1e-6
    x = (statistics - mean) / scale
    values, vectors = np.linalg.eigh(x.T.astype(np.float64) @ x)
    vectors = vectors.astype(np.float32)
    # x is centred, so that the mean of the targets drops out of this product.
    projected = vectors.T @ (tfidf(captions).T @ x).T
    names, of_clip = distinct_captions(list(validation_captions))
    sounds = (validation_statistics - mean) / scale @ vectors
    # [K, k]: scores for every penalty without a [K, V] product each.
    texts = (tfidf(names) @ projected.T).T
    found = {}
    for penalty in PENALTIES:
        shrink = (1.0 / (np.maximum(values, 0.0) + penalty)).astype(np.float32)
        scores = (sounds * shrink) @ texts
        right = scores[np.arange(len(of_clip)), of_clip]
        found[penalty] = float(np.mean((scores >= right[:, None]).sum(axis=1) <= 10))
    best = max(found, key=lambda penalty: found[penalty])
    shrink = (1.0 / (np.maximum(values, 0.0) + best)).astype(np.float32)
    return Ridge(tfidf, mean, scale, vectors @ (shrink[:, None] * projected), best)
