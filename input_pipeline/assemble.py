"""Finished parts -> one TFDS dataset, without the clips that two of them share."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from tqdm import tqdm

from input_pipeline import cleaning
from input_pipeline.cleaning import Rejected, RejectedLog
from input_pipeline.examples import Settings, stays_whole
from input_pipeline.formats.rows import FormatError
from input_pipeline.parts import FEATURES, VERSION, WRITER, Clip, Done


class Dropped:
    """Clips that are decoded, but leave the dataset because of another one.

    Attributes:
      positions: (part, split) -> positions in that shard.
      log: takes them in.
    """

    def __init__(self, log: RejectedLog) -> None:
        self.positions: dict[tuple[int, str], set[int]] = {}
        self.log = log

    def add(self, part: int, position: int, rejected: Rejected) -> None:
        """Drops a clip, unless it is dropped already."""
        shard = self.positions.setdefault((part, rejected.split), set())
        if position not in shard:
            shard.add(position)
            # What was asked to go is no sign of bad input.
            self.log.add(rejected, expected=rejected.reason == "excluded")

    def __len__(self) -> int:
        return sum(map(len, self.positions.values()))

    def __contains__(self, place: tuple[int, str, int]) -> bool:
        """Whether the clip at (part, split, position) is dropped."""
        part, split, position = place
        return position in self.positions.get((part, split), ())


def drop_duplicates(parts: Sequence[Done], settings: Settings, dropped: Dropped) -> None:
    """Drops clips with the PCM of another one, over all parts; also makes sure that ids are unique.

    Of every clip 33 bytes are in memory, and as many again while they are sorted.

    Raises:
      FormatError: two clips have one id.
    """
    shards = [
        (n, split, size) for n, part in enumerate(parts) for split, size in part.sizes.items()
    ]
    ends = np.cumsum([0, *(size for *_, size in shards)])
    ids = np.zeros(ends[-1], np.uint64)
    digests = np.zeros((ends[-1], 16), np.uint8)
    place = 0
    for part in tqdm(parts, desc="comparing", unit="part", delay=2.0, file=sys.stderr):
        for clip in itertools.chain.from_iterable(part.clips().values()):
            key = hashlib.blake2b(clip.id.encode("utf-8", "surrogatepass"), digest_size=8)
            ids[place] = int.from_bytes(key.digest(), "little")
            digests[place] = np.frombuffer(bytes.fromhex(clip.digest), np.uint8)
            place += 1
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(again):
        suspects = np.unique(np.concatenate([order[again], order[again + 1]]))
        names = Counter(_ids_of(parts, shards, ends, suspects).values())
        clip_id, count = names.most_common(1)[0]
        if count > 1:  # else two ids share a hash
            raise FormatError(
                f"two clips have the id {clip_id!r}: name a column of unique ids with --id-column,"
                " or remove one of the files that hold them"
            )
    del ids, order
    if settings.limits.keep_duplicates:
        return
    priority = {"test": 0, "validation": 1}
    others = dict.fromkeys(split for _, split, _ in shards if split not in priority)
    priority |= {split: 2 + number for number, split in enumerate(others)}
    sizes = np.diff(ends)
    ranks = np.repeat(np.array([priority[s] for _, s, _ in shards], np.int16), sizes)
    whole = np.repeat(np.array([stays_whole(s, settings) for _, s, _ in shards], bool), sizes)
    gone, kept = cleaning.find_duplicates(digests, ranks, whole)
    names_of = _ids_of(parts, shards, ends, np.unique(np.concatenate([gone, kept])))
    for clip, keeper in zip(gone.tolist(), kept.tolist(), strict=True):
        shard = int(np.searchsorted(ends, clip, side="right")) - 1
        number, split, _ = shards[shard]
        what = f"the same PCM as {names_of[keeper]}"
        rejected = Rejected(names_of[clip], "duplicate", what, "", split)
        dropped.add(number, clip - int(ends[shard]), rejected)


def _ids_of(
    parts: Sequence[Done],
    shards: Sequence[tuple[int, str, int]],
    ends: np.ndarray,
    clips: np.ndarray,
) -> dict[int, str]:
    """The ids of some clips, given as ascending positions over all shards."""
    found: dict[int, str] = {}
    known: tuple[int, dict[str, list[Clip]]] = -1, {}
    for clip in clips.tolist():
        shard = int(np.searchsorted(ends, clip, side="right")) - 1
        number, split, _ = shards[shard]
        if known[0] != number:
            known = number, parts[number].clips()
        found[clip] = known[1][split][clip - int(ends[shard])].id
    return found


def assemble(
    parts: Sequence[Done], dropped: Dropped, name: str, description: str, rate: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Writes the dataset out of finished parts, which stay as they are.

    Args:
      parts: all of them, in the order of the input.
      dropped: clips to leave out.
      name: the dataset's.
      description: a line about it.
      rate: sample rate, Hz.
      folder: an empty or new folder.

    Returns:
      Split -> number of examples and captions, hours, clips by licence and by source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    totals: dict[str, _Totals] = {}
    shards: dict[str, list[tuple[Path, set[int], int]]] = {}
    for number, part in enumerate(parts):
        for split, clips in part.clips().items():
            drop = dropped.positions.get((number, split), set())
            clips = [clip for position, clip in enumerate(clips) if position not in drop]
            if clips:
                shards.setdefault(split, []).append((part.folder / split, drop, len(clips)))
                totals.setdefault(split, _Totals()).add(clips)
    infos = []
    for split in _in_order(set(shards)):
        size = 0
        for index, (source, drop, _) in enumerate(shards[split]):
            final = folder / f"{name}-{split}.array_record-{index:05d}-of-{len(shards[split]):05d}"
            _link_or_copy(source, final, drop)
            size += final.stat().st_size
        lengths = [count for *_, count in shards[split]]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=infos,
        version=VERSION,
        check_data=False,
        description=description,
        metadata=tfds.core.MetadataDict(sample_rate=rate),
    )
    return {info.name: totals[info.name].summary(rate) for info in infos}


@dataclasses.dataclass
class _Totals:
    """What is said of a split."""

    examples: int = 0
    captions: int = 0
    samples: int = 0
    licences: Counter[str] = dataclasses.field(default_factory=Counter)
    sources: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, clips: Sequence[Clip]) -> None:
        self.examples += len(clips)
        self.captions += sum(clip.captions for clip in clips)
        self.samples += sum(clip.samples for clip in clips)
        self.licences.update(clip.licence for clip in clips)
        self.sources.update(clip.source for clip in clips)

    def summary(self, rate: int) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "captions": self.captions,
            "hours": round(self.samples / rate / 3600, 4),
            "licences": dict(self.licences.most_common()),
            "sources": dict(self.sources.most_common()),
        }


def _in_order(splits: set[str]) -> list[str]:
    usual = ("train", "validation", "test")
    return [*(name for name in usual if name in splits), *sorted(splits.difference(usual))]


def _link_or_copy(source: Path, target: Path, drop: set[int]) -> None:
    if not drop:
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)
        return
    records = array_record_data_source.ArrayRecordDataSource([os.fspath(source)])
    writer = array_record_module.ArrayRecordWriter(os.fspath(target), WRITER)
    for index in range(len(records)):
        if index not in drop:
            writer.write(records[index])
    writer.close()
