"""Retrieval on sets with several captions a clip (Clotho, AudioCaps), counted as papers count it.

text->audio: every caption is a query, its own clip the only right answer. audio->text: the gallery
is every caption of every clip, and a clip's own captions are right; R@k asks for the best placed of
them ("best of five"). Ties count against the model, so a caption that two clips share is never won
for free.

Of one matrix of scores, published codes compute different audio->text numbers, and papers call all
of them mAP@10. The primary one is trec_eval's, which WavCaps' code computes too; the others carry
the name of who counts so:

* `mAP@10`: precision at each right caption in the first 10, summed, divided by the number of right
  captions. trec_eval `map_cut_10`; WavCaps `retrieval/tools/utils.py` (`a2t`), and those who took
  their evaluation from there.
* `mAP@10[laion]`: the ranks are not sorted before they are numbered, so that a query whose first
  caption in the file comes late gains: at least the primary number, and it can exceed 1. LAION-CLAP
  `training/train.py` (`evaluate_clotho_audiocaps`) as released.
* `mAP@10[found]`: divided by the number of right captions found in the first 10, so one found at
  rank 1 is a perfect query. torchmetrics `RetrievalMAP(top_k=10)`; Cacophony
  `src/eval/eval_utils.py`, which moreover takes equal strings for one caption.
* `R@k[trec]`: share of the right captions found, not of queries with a hit: at most 1/5 at k=1.
  trec_eval `recall_k`; MTEB's `recall_at_k`.
* `R@k[strings]`: a caption of another clip with the same words is right too. Cacophony.

For text->audio, where one item is right, all of them agree.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.bootstrap import Interval, mean_interval, median_interval
from alm_jax.evaluators.metrics.chance import (
    average_precision_chance,
    median_rank_chance,
    recall_chance,
)
from alm_jax.evaluators.metrics.ranking import (
    TIE_TOLERANCE,
    Positives,
    Ranks,
    rank_positives,
    unit_grid,
)
from alm_jax.evaluators.results import with_interval

DEPTH = 10
KS = (1, 5, 10)
EVERY = "every caption is a query, its own clip the only right answer"
BEST_OF = "best placed of the clip's own captions"
TREC = "trec_eval map_cut_10 and WavCaps: divided by all right captions"
FORMS = {
    "laion": "LAION-CLAP as released: ranks numbered in file order; may exceed 1",
    "found": "torchmetrics RetrievalMAP(top_k=10), Cacophony: divided by the right captions found",
    "trec": "trec_eval recall_k, MTEB: share of a clip's captions found",
    "strings": "Cacophony: another clip's caption with the same words is right too",
}
PROTOCOL = "caption-sets-v1: cosine, every caption in the gallery, ties within {tolerance:g} lose"


def caption_set_metrics(
    audio: ArrayLike,
    text: ArrayLike,
    captions_of_clip: ArrayLike,
    *,
    prefix: str,
    tie_tolerance: float = TIE_TOLERANCE,
    intervals: bool = True,
) -> dict[str, dict[str, Any]]:
    """R@k, mAP@10 in every form, and median rank, both ways.

    Args:
      audio: embeddings of clips [n, D].
      text: embeddings of distinct caption strings [m, D].
      captions_of_clip: int [n, c], the strings of each clip in the order of its file, -1 behind; a
        string may stand there twice, and at several clips.
      prefix: names start with it: `{prefix}/audio_to_text/mAP@10[laion]`.
      tie_tolerance: cosine difference up to which two items are tied.
      intervals: whether to add confidence intervals.

    Returns:
      Name -> row, with intervals over clips: a clip is drawn together with its captions.

    Raises:
      UserError: fewer than two clips, a clip without a caption, non-finite embeddings.
    """
    clips, strings = unit_grid(audio, "audio"), unit_grid(text, "text")
    table = np.asarray(captions_of_clip).reshape(len(clips), -1)
    if len(clips) < 2:
        raise UserError(
            "retrieval needs at least two clips to choose between, but the evaluation set has "
            f"{len(clips)}: give another --split or dataset"
        )
    bare = np.flatnonzero((table < 0).all(axis=1))
    if bare.size:
        raise UserError(f"{bare.size} clips have no caption, first clip {bare[0]}")
    owner, place = np.nonzero(table >= 0)
    string = table[owner, place]
    every = np.arange(len(owner))
    gallery = strings[string]
    common: dict[str, Any] = {
        "n_clips": len(clips),
        "n_captions": len(every),
        "protocol": PROTOCOL.format(tolerance=tie_tolerance),
    }

    def rank(query: Any, items: Any, pairs: tuple[Any, Any]) -> tuple[Positives, Ranks]:
        _, right = Positives.from_pairs(*pairs)
        return right, rank_positives(query, items, right, depth=DEPTH, tie_tolerance=tie_tolerance)

    rows: dict[str, dict[str, Any]] = {}

    def add(direction: str, numbers: list[_Number], clip: Any, sizes: dict[str, int]) -> None:
        for number in numbers:
            name = f"{prefix}/{direction}/{number.name}"
            rows[name] = number.row() | sizes | common
            if intervals:
                rows[name] |= with_interval(number.interval(clip))

    one, ranks = rank(gallery, clips, (every, owner))
    numbers = _primary(ranks, one.counts, len(clips), EVERY, "one right clip: all codes agree")
    add("text_to_audio", numbers, owner, {"n_queries": len(every), "n_gallery": len(clips)})

    own, ranks = rank(clips, gallery, (owner, every))
    numbers = _primary(ranks, own.counts, len(every), BEST_OF, TREC)
    in_order = _rows_of(ranks.places, own.counts)
    numbers += [
        _Number(f"mAP@{DEPTH}[laion]", unsorted_precision(in_order), None, FORMS["laion"]),
        _Number(f"mAP@{DEPTH}[found]", precision_of_found(in_order), None, FORMS["found"]),
    ]
    for k in KS:
        share = (in_order <= k).sum(axis=1) / own.counts
        chance = min(k, len(every)) / len(every)
        numbers.append(_Number(f"R@{k}[trec]", share, chance, FORMS["trec"]))
    by_words, ranks = rank(clips, gallery, _equal_words(owner, string))
    for k in KS:
        chance = recall_chance(len(every), by_words.counts, k)
        numbers.append(_Number(f"R@{k}[strings]", ranks.best <= k, chance, FORMS["strings"]))
    sizes = {"n_queries": len(clips), "n_gallery": len(every)}
    add("audio_to_text", numbers, np.arange(len(clips)), sizes)
    return rows


class _Number(NamedTuple):
    """A mean, or a median of ranks, over queries."""

    name: str
    each: NDArray[Any]
    chance: float | None
    convention: str
    is_rank: bool = False

    def row(self) -> dict[str, Any]:
        mean = math.fsum(self.each) / len(self.each)
        return {
            "value": float(np.median(self.each)) if self.is_rank else mean,
            "chance": self.chance,
            "unit": "rank" if self.is_rank else "fraction",
            "convention": self.convention,
        }

    def interval(self, clip: NDArray[np.int64]) -> Interval | None:
        """Over clips; `clip` [q] is each query's."""
        return (median_interval if self.is_rank else mean_interval)(self.each, clip)


def _primary(
    ranks: Ranks, counts: NDArray[np.int64], size: int, recall: str, precision: str
) -> list[_Number]:
    """R@k, mAP@10 and median rank in a gallery of `size`, with how they are counted."""
    return [
        *(_Number(f"R@{k}", ranks.best <= k, recall_chance(size, counts, k), recall) for k in KS),
        _Number(
            f"mAP@{DEPTH}",
            ranks.average_precision,
            average_precision_chance(size, counts, DEPTH),
            precision,
        ),
        _Number("median_rank", ranks.best, median_rank_chance(size, counts), recall, is_rank=True),
    ]


def _equal_words(
    owner: NDArray[np.int64], string: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(clip, caption) pairs where some caption of the clip has the caption's words."""
    clip, words = np.unique(np.stack([owner, string], axis=1), axis=0).T
    order = np.argsort(string, kind="stable")
    first = np.searchsorted(string[order], words, "left")
    counts = np.searchsorted(string[order], words, "right") - first
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(clip, counts), order[np.repeat(first, counts) + offset]


def unsorted_precision(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """LAION-CLAP's average precision.

    Args:
      places: [q, c], ranks of the right captions in the order of the file; NaN where there is none.

    Returns:
      [q]: the j-th caption of the file that is among the first 10 counts j / rank, divided by the
      number of right captions.
    """
    kept = places <= DEPTH
    gain = np.where(kept, np.cumsum(kept, axis=1) / places, 0.0)
    return gain.sum(axis=1) / (~np.isnan(places)).sum(axis=1)


def precision_of_found(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average precision over what was found, as torchmetrics has it; arguments as above."""
    ranked = np.sort(places, axis=1)  # NaN goes behind
    kept = ranked <= DEPTH
    gain = np.where(kept, np.cumsum(kept, axis=1) / ranked, 0.0)
    return gain.sum(axis=1) / np.maximum(kept.sum(axis=1), 1)


def _rows_of(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Back-to-back values as rows [q, most], NaN behind."""
    table = np.full((len(counts), int(counts.max())), np.nan)
    owner = np.repeat(np.arange(len(counts)), counts)
    table[owner, np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)] = values
    return table
