"""Clips of a new dataset that leave it because of how they sound: `--exclude`, near-duplicates."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from input_pipeline.assemble import Dropped
from input_pipeline.cleaning import Rejected
from input_pipeline.examples import Settings, stays_whole
from input_pipeline.fingerprint import Fingerprint, at_rate
from input_pipeline.fingerprint_index import Index, matches
from input_pipeline.origins import origin
from input_pipeline.parts import Clip as Note
from input_pipeline.parts import Done, read_pcm, read_prints
from input_pipeline.recordings import CORRELATION, Clip, Reference

# Landmarks that are indexed at a time: 200 MB, 33 hours of sound.
_INDEXED = 1 << 24
_KEPT_CLIPS = 256
_KEPT_PARTS = 16

Shard = tuple[int, str]  # number of a part, and a split


def drop_excluded(
    parts: Sequence[Done], settings: Settings, references: Mapping[str, Reference], dropped: Dropped
) -> None:
    """Drops clips that share a recording with one of another dataset.

    Args:
      parts: all of them.
      settings: of the build; a published evaluation loses nothing.
      references: name -> dataset whose clips are not wanted.
      dropped: takes them in.
    """
    notes = _notes(parts)
    shards = [shard for shard in _shards(parts) if not stays_whole(shard[1], settings)]
    for shard, position, found in _clips(parts, shards, "excluding"):
        number, split = shard
        note = notes(number)[split][position]
        clip = Clip(note.id, origin(note._asdict()), note.digest, found)
        audio = functools.partial(_audio, parts, shard, position, settings.sample_rate)
        for name, reference in references.items():
            if overlaps := reference.find(position, clip, audio):
                other = overlaps[0]
                alike = f", {other.correlation:.2f} alike" if other.by == "sound" else ""
                what = f"by {other.by} the recording {reference.ids[other.evaluation]} of {name}"
                dropped.add(
                    number, position, Rejected(note.id, "excluded", what + alike, "", split)
                )
                break


def drop_near_duplicates(parts: Sequence[Done], settings: Settings, dropped: Dropped) -> None:
    """Drops clips that share a recording with a clip that stays.

    As with equal clips, those of the test split stay, then those of validation, then the first in
    the order of the input. Landmarks are indexed a block at a time, so that memory is bounded.

    Args:
      parts: all of them.
      settings: of the build.
      dropped: what is already gone, which nothing is compared with; takes them in.
    """
    notes, shards = _notes(parts), _shards(parts)
    audio = functools.lru_cache(_KEPT_CLIPS)(
        functools.partial(_audio, parts, sample_rate=settings.sample_rate)
    )
    first = 0
    while first < len(shards):
        places: list[tuple[Shard, int]] = []
        prints: list[Fingerprint] = []
        last = first
        while last < len(shards) and sum(len(found.landmarks) for found in prints) < _INDEXED:
            number, split = shards[last]
            for position, found in enumerate(read_prints(parts[number], split)):
                places.append((shards[last], position))
                prints.append(found)
            last += 1
        index = Index(prints)
        del prints
        own = {place: position for position, place in enumerate(places)}
        for shard, position, found in _clips(parts, shards[first:], "near-duplicates"):
            number, split = shard
            if (*shard, position) in dropped or stays_whole(split, settings):
                continue
            note = notes(number)[split][position]
            here = own.get((shard, position), len(places))
            for match in matches(
                index,
                found,
                functools.partial(audio, shard, position),
                functools.partial(_audio_at, audio, places),
                least=CORRELATION,
            ):
                (other, other_split), other_position = places[match.clip]
                if match.clip >= here or (other, other_split, other_position) in dropped:
                    continue
                kept = notes(other)[other_split][other_position].id
                what = f"the recording of {kept}, {match.correlation:.2f} alike"
                dropped.add(number, position, Rejected(note.id, "near_duplicate", what, "", split))
                break
        first = last


def _notes(parts: Sequence[Done]) -> Callable[[int], dict[str, list[Note]]]:
    """What is remembered of a part's clips; of a few parts in memory."""
    return functools.lru_cache(_KEPT_PARTS)(lambda number: parts[number].clips())


def _shards(parts: Sequence[Done]) -> list[Shard]:
    """All shards, those that keep their clips first."""
    order = {"test": 0, "validation": 1}
    found = [(number, split) for number, part in enumerate(parts) for split in part.sizes]
    return sorted(found, key=lambda shard: (order.get(shard[1], 2), shard[0]))


def _clips(
    parts: Sequence[Done], shards: Sequence[Shard], title: str
) -> Iterator[tuple[Shard, int, Fingerprint]]:
    total = sum(parts[number].sizes[split] for number, split in shards)
    with tqdm(total=total, desc=title, unit="clip", delay=2.0, file=sys.stderr) as bar:
        for shard in shards:
            number, split = shard
            for position, found in enumerate(read_prints(parts[number], split)):
                yield shard, position, found
                bar.update()


def _audio_at(
    audio: Callable[[Shard, int], np.ndarray], places: Sequence[tuple[Shard, int]], clip: int
) -> np.ndarray:
    return audio(*places[clip])


def _audio(parts: Sequence[Done], shard: Shard, position: int, sample_rate: int) -> np.ndarray:
    number, split = shard
    return at_rate(read_pcm(parts[number], split, position), sample_rate)
