"""Retrieval of captions by sound and of sounds by caption, against distinct captions.

Conventions, because published codes differ on the same scores (audio->text mAP@10 of one matrix
is 0.43, 0.57 or 0.74 depending on whose code ranks it):

* captions repeat, so the gallery of audio->text, and the queries of text->audio, are the distinct
  caption strings; any clip of a caption is a right answer to it;
* scores are cosines, and ties count against the model (`alm_jax.evaluators.metrics.ranking`);
* R@k is the share of queries with at least one right item among the first k, which is what
  captioning papers call recall@k (trec_eval's recall divides by the number of right items);
* mAP@10 is trec_eval's `map_cut_10`: precision at each right item found in the first 10, summed,
  divided by the number of ALL right items of the query;
* the median rank is that of the best placed right item, 1 is best.

Beside every value stands its exact expectation under a random ranking, and its bootstrap interval
over the queries. Sets with several captions a clip, counted as papers do, are in `caption_sets`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.bootstrap import mean_interval, median_interval
from alm_jax.evaluators.metrics.chance import (
    average_precision_chance,
    median_rank_chance,
    recall_chance,
)
from alm_jax.evaluators.metrics.ranking import (
    TIE_TOLERANCE,
    Positives,
    rank_positives,
    unit_grid,
)
from alm_jax.evaluators.results import with_interval

PROTOCOL = "retrieval-v1: cosine, distinct captions, ties within {tolerance:g} lose, trec mAP"
MAP_DEPTH = 10


def distinct_captions(
    captions: Sequence[str] | Sequence[Sequence[str]],
) -> tuple[list[str], NDArray[np.int64]]:
    """Lists each caption string once and says which one belongs to each clip.

    Strings are compared as they are: letter case and white space make a difference.

    Args:
      captions: one caption a clip, or a list of captions a clip (Clotho has five).

    Returns:
      The distinct captions in order of first appearance, and for every clip its index into them:
      int64 [clips], or [clips, most captions a clip] filled up with -1 for lists (all -1 for a clip
      without any).
    """
    index: dict[str, int] = {}
    if all(isinstance(caption, str) for caption in captions):
        of_clip = [index.setdefault(str(caption), len(index)) for caption in captions]
        return list(index), np.asarray(of_clip, np.int64)
    lists = [[caption] if isinstance(caption, str) else list(caption) for caption in captions]
    most = max((len(several) for several in lists), default=0)
    table = np.full((len(lists), max(most, 1)), -1, np.int64)
    for clip, several in enumerate(lists):
        for place, caption in enumerate(several):
            table[clip, place] = index.setdefault(caption, len(index))
    return list(index), table


def select_clips(
    audio: ArrayLike, text: ArrayLike, caption_of_clip: ArrayLike, keep: ArrayLike
) -> tuple[NDArray, NDArray, NDArray[np.int64]]:
    """Restricts a retrieval problem to some clips and to the captions of those clips.

    Args:
      audio: embeddings [clips, D].
      text: embeddings [captions, D] of distinct captions.
      caption_of_clip: int [clips] or [clips, c], as `retrieval_metrics` takes it.
      keep: bool [clips], True for clips that stay.

    Returns:
      audio, text and caption_of_clip of the smaller problem.
    """
    wanted = np.asarray(caption_of_clip)[np.asarray(keep, bool)]
    used = np.unique(wanted[wanted >= 0])
    smaller = np.where(wanted >= 0, np.searchsorted(used, wanted), -1)
    return np.asarray(audio)[np.asarray(keep, bool)], np.asarray(text)[used], smaller


def retrieval_metrics(
    audio: ArrayLike,
    text: ArrayLike,
    caption_of_clip: ArrayLike,
    *,
    prefix: str = "eval/retrieval",
    ks: Sequence[int] = (1, 5, 10),
    tie_tolerance: float = TIE_TOLERANCE,
    intervals: bool = True,
) -> dict[str, dict[str, Any]]:
    """R@k, mAP@10 and median rank, audio->text and text->audio.

    Captions that belong to no clip are distractors: they stand in the gallery of audio->text and
    are no queries of text->audio.

    Args:
      audio: embeddings of clips [n, D], any float type, of any length.
      text: embeddings of distinct captions [m, D].
      caption_of_clip: int [n], row of `text` that describes each clip; or int [n, c] where a clip
        has up to c captions, filled up with -1.
      prefix: names start with it: `{prefix}/audio_to_text/R@10`.
      ks: cut-offs of recall.
      tie_tolerance: cosine difference up to which two items are tied.
      intervals: whether to add confidence intervals.

    Returns:
      Name -> row with `value`, `chance`, `unit`, `n_clips`, `n_captions`, `n_queries`,
      `n_gallery`, `protocol`, and `ci_low`, `ci_high`, `ci`. R@k and mAP are fractions, ranks start
      at 1.

    Raises:
      UserError: NaN or infinite embeddings (the rows are named), widths that differ, an index
        that is out of range, a clip without a caption.
    """
    clips, captions = unit_grid(audio, "audio"), unit_grid(text, "text")
    clip, caption = _pairs(caption_of_clip, len(clips), len(captions))
    protocol = PROTOCOL.format(tolerance=tie_tolerance)
    results: dict[str, dict[str, Any]] = {}
    for direction, query, gallery, pairs in (
        ("audio_to_text", clips, captions, (clip, caption)),
        ("text_to_audio", captions, clips, (caption, clip)),
    ):
        queries, positives = Positives.from_pairs(*pairs)
        ranks = rank_positives(
            query[queries], gallery, positives, depth=MAP_DEPTH, tie_tolerance=tie_tolerance
        )
        size, right = len(gallery), positives.counts
        found = [ranks.best <= k for k in ks]
        values: list[tuple[str, float, float, str, Any]] = [
            (f"R@{k}", float(np.mean(hit)), recall_chance(size, right, k), "fraction", hit)
            for k, hit in zip(ks, found, strict=True)
        ]
        # fsum is exact, so that the order of the clips cannot move the last digit.
        precision = ranks.average_precision
        mean_precision = math.fsum(precision) / len(queries)
        chance_precision = average_precision_chance(size, right, MAP_DEPTH)
        values.append((f"mAP@{MAP_DEPTH}", mean_precision, chance_precision, "fraction", precision))
        median = float(np.median(ranks.best))
        values.append(("median_rank", median, median_rank_chance(size, right), "rank", ranks.best))
        for name, value, chance, unit, each in values:
            row: dict[str, Any] = {
                "value": value,
                "chance": chance,
                "unit": unit,
                "n_clips": len(clips),
                "n_captions": len(captions),
                "n_queries": len(queries),
                "n_gallery": size,
                "protocol": protocol,
            }
            if intervals:
                find = median_interval if unit == "rank" else mean_interval
                row |= with_interval(find(each), "queries")
            results[f"{prefix}/{direction}/{name}"] = row
    return results


def _pairs(
    caption_of_clip: ArrayLike, n_clips: int, n_captions: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All (clip, caption) pairs that belong together, with the index checked."""
    index = np.asarray(caption_of_clip)
    if index.ndim not in (1, 2) or len(index) != n_clips:
        raise UserError(
            f"caption_of_clip must have shape [{n_clips}] or [{n_clips}, captions a clip], as "
            f"there are {n_clips} audio embeddings; got {index.shape}"
        )
    if not np.issubdtype(index.dtype, np.integer):
        raise UserError(f"caption_of_clip must be integers, got {index.dtype}")
    table = index.reshape(n_clips, -1).astype(np.int64)
    lowest = 0 if index.ndim == 1 else -1
    wrong = np.flatnonzero(((table < lowest) | (table >= n_captions)).any(axis=1))
    if wrong.size:
        raise UserError(
            f"caption_of_clip names a caption outside 0..{n_captions - 1} for {wrong.size} clips, "
            f"first for clip {wrong[0]}: {table[wrong[0]].tolist()}"
        )
    missing = np.flatnonzero((table < 0).all(axis=1))
    if missing.size:
        raise UserError(f"{missing.size} clips have no caption, first clip {missing[0]}")
    clip, place = np.nonzero(table >= 0)
    return clip, table[clip, place]
