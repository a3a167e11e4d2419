"""BLEU, ROUGE-L and CIDEr-D of generated captions, with chance and intervals.

pycocoevalcap, the usual implementation, is a 104 MB wheel because it carries Java programs for its
tokeniser and for METEOR. The scorers in `caption_scores` need no Java and give its numbers on the
same words. The words differ: coco-caption runs the Penn Treebank tokeniser, made for English;
`caption_words` reads any language. So numbers are comparable between models scored here, and close
to, but not to be mixed with, published ones; those on Treebank words are added where Java is
(`caption_java`).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.bootstrap import Interval, interval, mean_interval
from alm_jax.evaluators.metrics.caption_scores import bleu_counts, bleu_of, cider_d, rouge_l
from alm_jax.evaluators.metrics.caption_words import Words, tokenise
from alm_jax.evaluators.results import with_interval

PROTOCOL = (
    "captions-v1: coco-caption's BLEU (closest length), ROUGE-L (beta 1.2), CIDEr-D (sigma 6, x10) "
    "on lower-case Unicode words; chance = the same captions given to shuffled clips"
)
CHANCE_SHUFFLES = 5


def unicode_words(texts: Sequence[str]) -> list[Words]:
    """`caption_words.tokenise` of every text."""
    return [tokenise(text) for text in texts]


def caption_metrics(
    candidates: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    prefix: str = "eval/captions",
    suffix: str = "",
    words_of: Callable[[Sequence[str]], list[Words]] = unicode_words,
    protocol: str = PROTOCOL,
) -> dict[str, dict[str, Any]]:
    """BLEU-1..4, ROUGE-L and CIDEr-D of generated captions.

    The chance beside each is what these very captions score when they are handed to the clips in
    random order (mean of five seeded shuffles): the part that comes from the style of the captions
    and not from listening. Intervals are over clips; CIDEr-D keeps the document frequencies of all.

    Args:
      candidates: one generated caption a clip; may be empty, and then scores 0.
      references: the true caption, or list of true captions, of each clip.
      prefix: names start with it: `{prefix}/CIDEr-D`.
      suffix: names end with it.
      words_of: texts -> their words, in order.
      protocol: what to call this way of counting.

    Returns:
      Name -> row; BLEU and ROUGE-L in [0, 1], CIDEr-D in [0, 10].

    Raises:
      UserError: numbers of candidates and references differ, or a clip without reference.
    """
    texts = checked_references(candidates, references)
    counts = [len(several) for several in texts]
    words = words_of([*candidates, *(text for several in texts for text in several)])
    ends = np.cumsum([len(candidates), *counts]).tolist()
    own = [sorted(words[a:b]) for a, b in itertools.pairwise(ends)]
    # Shuffles start from a sorted list, so that the order of the clips changes no number.
    clips = sorted(zip(words[: len(candidates)], own, strict=True))
    said, refs = [list(column) for column in zip(*clips, strict=True)]
    values = _scores(said, refs)
    generator = np.random.default_rng(0)
    shuffled = []
    for _ in range(CHANCE_SHUFFLES):
        order = generator.permutation(len(said))
        shuffled.append(_scores([said[i] for i in order], refs, intervals=False))
    return {
        f"{prefix}/{name}{suffix}": {
            "value": value,
            "chance": sum(one[name][0] for one in shuffled) / len(shuffled),
            "unit": "score",
            "n_clips": len(said),
            "n_captions": sum(counts),
            "protocol": protocol,
            **with_interval(ends_of_value),
        }
        for name, (value, ends_of_value) in values.items()
    }


def checked_references(
    candidates: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """The references of every clip; raises as `caption_metrics`."""
    if not candidates or len(candidates) != len(references):
        raise UserError(
            f"need one candidate for each clip's references, got {len(candidates)} candidates "
            f"and {len(references)} clips"
        )
    texts = [(ref,) if isinstance(ref, str) else tuple(ref) for ref in references]
    missing = [clip for clip, refs in enumerate(texts) if not refs]
    if missing:
        raise UserError(f"{len(missing)} clips have no reference caption, first clip {missing[0]}")
    return texts


def _scores(
    said: list[Words], refs: list[list[Words]], *, intervals: bool = True
) -> dict[str, tuple[float, Interval | None]]:
    """Name -> value and interval."""
    counts = bleu_counts(said, refs)
    found: dict[str, tuple[float, Interval | None]] = {}
    for n, value in enumerate(bleu_of(counts.sum(axis=0)).tolist()):

        def corpus(weights: np.ndarray, n: int = n) -> np.ndarray:
            return bleu_of(weights @ counts)[:, n]

        found[f"BLEU-{n + 1}"] = value, interval(len(said), corpus) if intervals else None
    for name, each in (("ROUGE-L", rouge_l(said, refs)), ("CIDEr-D", cider_d(said, refs))):
        mean = math.fsum(each) / len(said)
        found[name] = mean, mean_interval(each) if intervals else None
    return found
