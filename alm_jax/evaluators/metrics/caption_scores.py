"""BLEU, ROUGE-L and CIDEr-D of words, equal to coco-caption's scorers on the same words.

Sources: Papineni et al., ACL 2002 (BLEU); Lin, ACL workshop 2004 (ROUGE-L); Vedantam et al., CVPR
2015 (CIDEr-D); values computed with pycocoevalcap (tests/evaluators/test_caption_metrics.py).
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alm_jax.evaluators.metrics.caption_words import Words

MAX_N = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0

Ngrams = Counter[Words]


def bleu(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], max_n: int = MAX_N
) -> list[float]:
    """Corpus BLEU-1 to BLEU-`max_n`: `bleu_of` the sum of `bleu_counts`; arguments as there."""
    return bleu_of(bleu_counts(candidates, references, max_n).sum(axis=0)).tolist()


def bleu_counts(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], max_n: int = MAX_N
) -> NDArray[np.int64]:
    """What each clip adds to corpus BLEU.

    The reference length of a clip is that of the reference closest in length to the candidate, the
    shorter of two equally close ones.

    Args:
      candidates: words of one candidate a clip.
      references: words of one or more references a clip.
      max_n: longest n-gram.

    Returns:
      [n, 2 * max_n + 2]: matches of each length, guesses of each length, words of the candidate and
      of the reference.
    """
    table = np.zeros((len(candidates), 2 * max_n + 2), np.int64)
    for row, candidate, refs in zip(table, candidates, references, strict=True):
        row[-2] = len(candidate)
        row[-1] = min((len(ref) for ref in refs), key=lambda n: (abs(n - len(candidate)), n))
        allowed: Ngrams = Counter()
        for ref in refs:
            allowed |= _ngrams(ref, max_n)
        for gram, count in _ngrams(candidate, max_n).items():
            row[len(gram) - 1] += min(count, allowed[gram])
        row[max_n : 2 * max_n] = np.maximum(0, len(candidate) - np.arange(max_n))
    return table


def bleu_of(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """BLEU of summed counts.

    Like coco-caption, the counts carry a trace (1e-15 on matches, 1e-9 on guesses) that keeps the
    logarithm finite: without any 4-gram match BLEU-4 is about 1e-4 on a small corpus rather than 0.

    Args:
      counts: [..., 2 * max_n + 2], sums over clips of `bleu_counts`.

    Returns:
      [..., max_n] in [0, 1].
    """
    max_n = counts.shape[-1] // 2 - 1
    sums = counts.astype(np.float64)
    ratio = (sums[..., -2] + 1e-15) / (sums[..., -1] + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    precisions = (sums[..., :max_n] + 1e-15) / (sums[..., max_n : 2 * max_n] + 1e-9)
    roots = 1.0 / np.arange(1, max_n + 1)
    return brevity[..., None] * np.cumprod(precisions, axis=-1) ** roots


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """ROUGE-L of every clip.

    As in coco-caption, the best precision and the best recall over the references are combined
    (they may come from different references) with beta = 1.2, which favours recall.

    Args:
      candidates: words of one candidate a clip.
      references: words of one or more references a clip.

    Returns:
      One value in [0, 1] a clip; 0 for an empty candidate.
    """
    values = []
    for candidate, refs in zip(candidates, references, strict=True):
        common = [_common_length(candidate, ref) for ref in refs]
        precision = max(common) / max(len(candidate), 1)
        recall = max(n / max(len(ref), 1) for n, ref in zip(common, refs, strict=True))
        weight = ROUGE_BETA**2
        bottom = recall + weight * precision
        values.append((1 + weight) * precision * recall / bottom if bottom else 0.0)
    return values


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of every clip, times 10.

    Document frequencies are those of the references (a document is all references of a clip), so
    the value depends on the test set; on a single clip every idf, and the value, is 0. Lengths in
    the Gaussian penalty are counted in bigrams, as coco-caption's code does.

    Args:
      candidates: words of one candidate a clip.
      references: words of one or more references a clip.

    Returns:
      One value in [0, 10] a clip.
    """
    documents: Ngrams = Counter()
    for refs in references:
        documents.update(set().union(*(_ngrams(ref, MAX_N) for ref in refs)))
    log_total = math.log(len(references)) if references else 0.0
    idf = {gram: log_total - math.log(count) for gram, count in documents.items()}
    vectors: dict[Words, _Vector] = {}

    def vector(words: Words) -> _Vector:
        if words not in vectors:
            vectors[words] = _Vector(words, idf, log_total)
        return vectors[words]

    return [
        10.0 * math.fsum(vector(candidate).similarity(vector(ref)) for ref in refs) / len(refs)
        for candidate, refs in zip(candidates, references, strict=True)
    ]


class _Vector:
    """TF-IDF weights of a caption's n-grams, by n, with their norms."""

    def __init__(self, words: Words, idf: dict[Words, float], unseen_idf: float):
        self.bigrams = max(len(words) - 1, 0)
        self.weights: list[dict[Words, float]] = [{} for _ in range(MAX_N)]
        for gram, count in _ngrams(words, MAX_N).items():
            self.weights[len(gram) - 1][gram] = count * idf.get(gram, unseen_idf)
        self.norms = [math.sqrt(math.fsum(w * w for w in n.values())) for n in self.weights]

    def similarity(self, reference: "_Vector") -> float:
        """Mean over n of the clipped cosine with a reference, damped by difference in length."""
        total = 0.0
        pairs = zip(self.weights, reference.weights, self.norms, reference.norms, strict=True)
        for mine, theirs, norm, their_norm in pairs:
            if norm and their_norm:
                shared = mine.keys() & theirs.keys()
                dot = math.fsum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in shared)
                total += dot / (norm * their_norm)
        difference = self.bigrams - reference.bigrams
        return total / MAX_N * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))


@lru_cache(maxsize=1 << 16)
def _ngrams(words: Words, max_n: int) -> Ngrams:
    """Counts of all n-grams up to max_n; callers must not change the (cached) result."""
    return Counter(
        words[start : start + n] for n in range(1, max_n + 1) for start in range(len(words) - n + 1)
    )


@lru_cache(maxsize=1 << 16)
def _common_length(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for place, other in enumerate(b, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]
