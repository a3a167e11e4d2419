"""Rows -> examples: decoding, resampling, cleaning. Pure functions that any engine can map."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from input_pipeline import audio_files, cleaning
from input_pipeline.audio_files import AudioError
from input_pipeline.cleaning import Limits, Rejected
from input_pipeline.formats.rows import Row


@dataclasses.dataclass(frozen=True)
class Settings:
    """How rows become examples.

    Attributes:
      sample_rate: of the PCM, Hz.
      limits: what a clip must be like.
      segment_seconds: a longer recording becomes clips of this length, one behind the other, each
        with all captions; 0: it stays whole. Evaluations of a published corpus always do.
      label_captions: captions of a clip that has labels only, with {} for the labels; () for none.
      split: all go into this split; "": into their own, or by the next two.
      validation: share of rows without a split that goes into `validation`.
      test: share that goes into `test`.
      published: the corpus' own held-out splits are to stay whole: there only clips that cannot be
        decoded or described are rejected, so that the number of clips stays that of others.
      fingerprints: keep the landmarks of every clip beside it, for what is looked up later.
    """

    sample_rate: int = audio_files.SAMPLE_RATE
    limits: Limits = dataclasses.field(default_factory=Limits)
    segment_seconds: float = 0.0
    label_captions: tuple[str, ...] = ("the sound of {}",)
    split: str = ""
    validation: float = 0.1
    test: float = 0.1
    published: bool = False
    fingerprints: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
    """What is written of a clip, but for its features' encoding.

    Attributes:
      split: where it goes.
      digest: hash of its PCM.
      features: name -> value, see `parts.FEATURES`.
    """

    split: str
    digest: str
    features: dict[str, object]


class _SpanError(Exception):
    """A clip that is to lie where its file has ended."""


def split_of(row: Row, settings: Settings) -> str:
    """The split of a row: the person's, its own, or by a hash of its group."""
    if settings.split or row.split:
        return settings.split or row.split
    # The rule of OpenSounds, so that a clip's side does not depend on the others.
    bucket = zlib.crc32(f"v1|{row.group or row.id}".encode()) % 1000 / 1000
    if bucket < settings.test:
        return "test"
    return "validation" if bucket < settings.test + settings.validation else "train"


def stays_whole(split: str, settings: Settings) -> bool:
    """Whether a split is a published evaluation, which loses no clip for its quality."""
    return settings.published and not settings.split and split in ("validation", "test")


def label_text(labels: Iterable[str]) -> str:
    """Labels as words: `Car_passing_by`, `Wind` -> `car passing by and wind`."""
    words = [" ".join(label.replace("_", " ").split()).lower() for label in labels]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def examples(rows: Iterable[Row], settings: Settings) -> Iterator[Example | Rejected]:
    """Turns rows into examples, one at a time, in order.

    Args:
      rows: of any adapter.
      settings: how.

    Yields:
      An example, or why there is none; duplicates are found later, over all rows.
    """
    for row in rows:
        split = split_of(row, settings)
        described = _describe(row, split, settings)
        if isinstance(described, Rejected):
            yield described
            continue
        try:
            for clip_id, pcm in _clips(row, split, settings):
                yield _example(row, clip_id, split, pcm, described, settings)
        except _SpanError as error:
            yield Rejected(row.id, "bad_span", str(error), row.where, split)
        except AudioError as error:
            yield Rejected(row.id, error.reason, error.detail, row.where, split)


def _describe(row: Row, split: str, settings: Settings) -> dict[str, object] | Rejected:
    """The features of a row's clips that are not sound."""

    def without(reason: str, detail: str) -> Rejected:
        return Rejected(row.id, reason, detail, row.where, split)

    if row.audio is None:
        return without("missing", row.problem or "no audio")
    if row.end is not None and row.end <= row.start:
        return without("bad_span", f"it ends at {row.end:g} s and begins at {row.start:g} s")
    captions, kind = cleaning.clean_captions(row.captions), row.caption_kind
    generated = cleaning.clean_captions(row.generated)
    if not stays_whole(split, settings):
        found = captions + generated
        captions, generated = (
            tuple(text for text in texts if not cleaning.foreign(text, settings.limits))
            for texts in (captions, generated)
        )
        if found and not captions + generated:
            problem = cleaning.foreign(found[0], settings.limits)
            assert problem is not None
            return without(*problem)
    if not captions and generated:
        captions, generated, kind = generated, (), "generated"
    if not captions and row.labels and settings.label_captions:
        words = label_text(row.labels)
        captions = tuple(caption.replace("{}", words) for caption in settings.label_captions)
        kind = "labels"
    if not captions and settings.limits.needs_caption:
        return without("no_caption", "no caption" + (" but an empty one" if row.captions else ""))
    return {
        "text": list(captions),
        "text_generated": list(generated),
        "source": row.source,
        "licence": row.licence,
        "labels": list(row.labels),
        "fold": row.fold,
        "group": row.group or row.id,
        "caption_kind": kind,
    }


def _example(
    row: Row,
    clip_id: str,
    split: str,
    pcm: np.ndarray,
    described: dict[str, object],
    settings: Settings,
) -> Example | Rejected:
    if not stays_whole(split, settings) and (
        problem := cleaning.check_pcm(pcm, settings.sample_rate, settings.limits)
    ):
        where = row.where if clip_id == row.id else f"{row.where}, {clip_id}"
        return Rejected(clip_id, *problem, where, split)
    return Example(split, cleaning.pcm_digest(pcm), {"audio": pcm, "id": clip_id, **described})


def _clips(row: Row, split: str, settings: Settings) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and PCM int16 [S] of a row's clips: one, unless the recording is to be cut.

    Raises:
      AudioError: it cannot be decoded.
      _SpanError: less than half of the clip is in the file.
    """
    rate, limits = settings.sample_rate, settings.limits
    longest = None
    size = 0
    if not stays_whole(split, settings):
        size = round(settings.segment_seconds * rate)
        # Decoded only as far as decides that it is too long: a file of 10 hours is no burden.
        longest = None if size else limits.max_seconds + 1
    if row.end is not None:
        longest = min(longest or row.end, row.end - row.start)
    assert row.audio is not None
    blocks = audio_files.stream_audio(
        row.audio,
        sample_rate=rate,
        max_seconds=longest,
        start_seconds=row.start,
        name=str(row.audio) if isinstance(row.audio, Path) else row.where or row.id,
    )
    pieces = _cut(map(audio_files.to_int16, blocks), size)
    first = next(pieces)
    second = next(pieces, None)
    if second is None:
        asked = 0.0 if row.end is None else (row.end - row.start) * rate
        if longest is not None and len(first) < min(asked / 2, longest * rate - 1):
            end = row.start + len(first) / rate
            raise _SpanError(f"the file ends at {end:g} s, the clip at {row.end:g} s")
        yield row.id, first
        return
    begin = row.start
    for pcm in itertools.chain([first, second], pieces):
        end = begin + len(pcm) / rate
        if len(pcm) >= limits.min_seconds * rate:  # the rest of a recording may be too short
            yield f"{row.id}#{begin:g}-{end:g}", pcm
        begin = end


def _cut(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Joins blocks int16 [S] and cuts them into pieces of `size` (0: one piece)."""
    kept: list[np.ndarray] = []
    have = 0
    for block in blocks:
        while size and have + len(block) > size:
            yield np.concatenate([*kept, block[: size - have]])
            block = block[size - have :]
            kept, have = [], 0
        kept.append(block)
        have += len(block)
    yield np.concatenate(kept) if len(kept) > 1 else kept[0]
