"""Finished parts -> one TFDS dataset, without the clips that two of them share."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module

from input_pipeline import cleaning
from input_pipeline.cleaning import Rejected
from input_pipeline.examples import Settings, stays_whole
from input_pipeline.formats.rows import FormatError
from input_pipeline.parts import FEATURES, VERSION, WRITER, Clip, Done


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Clips that are decoded, but leave the dataset because of another one.

    Attributes:
      positions: (part, split) -> positions in that shard.
      rejected: the same, for the list.
    """

    positions: dict[tuple[int, str], set[int]] = dataclasses.field(default_factory=dict)
    rejected: list[Rejected] = dataclasses.field(default_factory=list)

    def add(self, part: int, position: int, rejected: Rejected) -> None:
        """Drops a clip, unless it is dropped already."""
        shard = self.positions.setdefault((part, rejected.split), set())
        if position not in shard:
            shard.add(position)
            self.rejected.append(rejected)

    def __contains__(self, place: tuple[int, str, int]) -> bool:
        """Whether the clip at (part, split, position) is dropped."""
        part, split, position = place
        return position in self.positions.get((part, split), ())


def find_duplicates(parts: list[Done], settings: Settings) -> Dropped:
    """Clips with the PCM of another one, over all parts; also makes sure that ids are unique.

    Raises:
      FormatError: two clips have one id.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    clips: dict[str, list[tuple[str, str]]] = {}
    ids: set[str] = set()
    for number, part in enumerate(parts):
        for split, found in part.clips.items():
            for position, clip in enumerate(found):
                if clip.id in ids:
                    raise FormatError(
                        f"two clips have the id {clip.id!r}: name a column of unique ids with"
                        " --id-column, or remove one of the files that hold them"
                    )
                ids.add(clip.id)
                places.setdefault(split, []).append((number, position))
                clips.setdefault(split, []).append((clip.id, clip.digest))
    dropped = Dropped()
    if settings.limits.keep_duplicates:
        return dropped
    whole = [split for split in clips if stays_whole(split, settings)]
    for (split, index), kept in cleaning.find_duplicates(clips, whole).items():
        number, position = places[split][index]
        clip_id = clips[split][index][0]
        what = f"the same PCM as {kept}"
        dropped.add(number, position, Rejected(clip_id, "duplicate", what, "", split))
    return dropped


def assemble(
    parts: list[Done], dropped: Dropped, name: str, description: str, rate: int, folder: Path
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
    summary: dict[str, dict[str, Any]] = {}
    infos = []
    for split in _in_order({split for part in parts for split in part.clips}):
        shards = []
        for number, part in enumerate(parts):
            drop = dropped.positions.get((number, split), set())
            clips = [c for i, c in enumerate(part.clips.get(split, ())) if i not in drop]
            if clips:
                shards.append((part.folder / split, drop, clips))
        if not shards:
            continue
        size = 0
        for index, (source, drop, _) in enumerate(shards):
            final = folder / f"{name}-{split}.array_record-{index:05d}-of-{len(shards):05d}"
            _link_or_copy(source, final, drop)
            size += final.stat().st_size
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(clips) for *_, clips in shards], num_bytes=size
            )
        )
        summary[split] = _summary([clip for *_, clips in shards for clip in clips], rate)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=infos,
        version=VERSION,
        check_data=False,
        description=description,
        metadata=tfds.core.MetadataDict(sample_rate=rate),
    )
    return summary


def _summary(clips: list[Clip], rate: int) -> dict[str, Any]:
    return {
        "examples": len(clips),
        "captions": sum(clip.captions for clip in clips),
        "hours": round(sum(clip.samples for clip in clips) / rate / 3600, 4),
        "licences": dict(Counter(clip.licence for clip in clips).most_common()),
        "sources": dict(Counter(clip.source for clip in clips).most_common()),
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
