"""Parts of an input -> finished shards; finished shards -> one TFDS dataset.

A part is a slice of rows or one tar or parquet file. `write_part` is a pure function of it and of
the settings that leaves a folder with one array_record file a split and, last, `done.json`; so
parts can be made anywhere in any order, and a finished one is never made again. `assemble` joins
them: it drops clips that two parts share, links the files under their final names and writes the
metadata. Audio and text are held for one clip at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module

from input_pipeline import cleaning
from input_pipeline.cleaning import Rejected
from input_pipeline.examples import Example, Settings, examples, stays_whole
from input_pipeline.formats import FORMATS
from input_pipeline.formats.rows import FormatError, Options, Row

VERSION = "1.0.0"
_DONE = "done.json"

# `text` is a list: every caption of the clip. Training draws one, evaluation uses them all.
FEATURES = {
    # Encoding.BYTES: as tf.Example integers a negative sample would take ten bytes.
    "audio": tfds.features.Tensor(
        shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
    "text": tfds.features.Sequence(tfds.features.Text(doc="caption")),
    "id": tfds.features.Text(doc="unique in the dataset"),
    "source": tfds.features.Text(doc="where the clip comes from"),
    "licence": tfds.features.Text(doc="licence of the clip, as stated"),
    "labels": tfds.features.Sequence(tfds.features.Text(doc="class or tag, as published")),
    "fold": tfds.features.Scalar(np.int64, doc="cross-validation fold; 0: none"),
    "group": tfds.features.Text(doc="clips of one group lie on one side of a split"),
    "caption_kind": tfds.features.Text(doc="who wrote the captions: human, generated, labels, ''"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of work.

    Attributes:
      name: its folder's name; parts sort by it into the order of the input.
      layout: name of the format.
      root: the input.
      options: the person's, for reading `file`.
      rows: the rows themselves, or
      file: the file that holds them.
    """

    name: str
    layout: str
    root: Path
    options: Options
    rows: tuple[Row, ...] = ()
    file: Path | None = None

    def read(self) -> Iterator[Row]:
        """Its rows."""
        if self.file is None:
            yield from self.rows
            return
        rows_of = FORMATS[self.layout].rows_of
        assert rows_of is not None
        yield from rows_of(self.file, self.root, self.options)

    def digest(self, settings: Settings) -> str:
        """Changes with whatever decides what the part becomes."""
        # These two are judged over all parts, later.
        limits = dataclasses.replace(settings.limits, max_rejected=0.0, keep_duplicates=False)
        digest = hashlib.blake2b(digest_size=16)
        how = (VERSION, self.layout, self.options, dataclasses.replace(settings, limits=limits))
        digest.update(repr((*how, self.file, self.rows)).encode())
        for path in [self.file] if self.file else [row.audio for row in self.rows]:
            if isinstance(path, Path):  # a file that was mended or replaced is read again
                status = path.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns};".encode())
        return digest.hexdigest()


class Clip(NamedTuple):
    """What is remembered of a written clip.

    Attributes:
      id: of the clip.
      digest: hash of its PCM.
      samples: its length.
      captions: how many it has.
      licence: as stated.
      source: as stated.
    """

    id: str
    digest: str
    samples: int
    captions: int
    licence: str
    source: str


@dataclasses.dataclass(frozen=True)
class Done:
    """What became of a part.

    Attributes:
      folder: where its shards lie.
      rows: how many rows it had.
      clips: split -> its examples, in order.
      rejected: what gave no example.
    """

    folder: Path
    rows: int
    clips: dict[str, list[Clip]]
    rejected: list[Rejected]


def read_done(folder: Path, digest: str) -> Done | None:
    """A finished part; None if it is not finished or was made from something else."""
    path = folder / _DONE
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["digest"] != digest:
        return None
    return Done(
        folder,
        content["rows"],
        {split: [Clip(*clip) for clip in clips] for split, clips in content["clips"].items()},
        [Rejected(**item) for item in content["rejected"]],
    )


def write_part(part: Part, settings: Settings, work: Path) -> Done:
    """Makes a part, unless it is already made.

    Args:
      part: what to read.
      settings: how.
      work: folder of the parts.
    """
    folder, digest = work / part.name, part.digest(settings)
    if (done := read_done(folder, digest)) is not None:
        return done
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    encode = _Encoder()
    writers: dict[str, Any] = {}
    clips: dict[str, list[Clip]] = {}
    rejected: list[Rejected] = []
    count = 0
    try:
        for outcome in examples(part.read(), settings):
            count += 1
            if isinstance(outcome, Rejected):
                rejected.append(outcome)
                continue
            split = outcome.split
            if split not in writers:
                # group_size:1 is what random access needs; TFDS writes so too.
                writers[split] = array_record_module.ArrayRecordWriter(
                    os.fspath(folder / split), "group_size:1"
                )
            writers[split].write(encode(outcome))
            clips.setdefault(split, []).append(_note(outcome))
    finally:
        for writer in writers.values():
            writer.close()
    content = {
        "digest": digest,
        "rows": count,
        "clips": clips,
        "rejected": [item.as_dict() for item in rejected],
    }
    unfinished = folder / f"{_DONE}.part"
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.rename(folder / _DONE)
    return Done(folder, count, clips, rejected)


class _Encoder:
    """Example -> serialised tf.train.Example, as TFDS would write it."""

    def __init__(self) -> None:
        self._features = tfds.features.FeaturesDict(FEATURES)
        info = self._features.get_serialized_info()
        self._serializer = tfds.core.example_serializer.ExampleSerializer(info)

    def __call__(self, example: Example) -> bytes:
        encoded = self._features.encode_example(example.features)
        return self._serializer.serialize_example(encoded)


def _note(example: Example) -> Clip:
    features: dict[str, Any] = example.features
    return Clip(
        features["id"],
        example.digest,
        len(features["audio"]),
        len(features["text"]),
        features["licence"],
        features["source"],
    )


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Clips that leave the dataset because another one has their PCM.

    Attributes:
      positions: (part, split) -> positions in that shard.
      rejected: the same, for the list.
    """

    positions: dict[tuple[int, str], set[int]]
    rejected: list[Rejected]


def find_duplicates(parts: list[Done], settings: Settings) -> Duplicates:
    """Duplicates over all parts; also makes sure that ids are unique.

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
    positions: dict[tuple[int, str], set[int]] = {}
    rejected: list[Rejected] = []
    if settings.limits.keep_duplicates:
        return Duplicates(positions, rejected)
    whole = [split for split in clips if stays_whole(split, settings)]
    for (split, index), kept in cleaning.find_duplicates(clips, whole).items():
        number, position = places[split][index]
        positions.setdefault((number, split), set()).add(position)
        clip_id = clips[split][index][0]
        rejected.append(Rejected(clip_id, "duplicate", f"the same PCM as {kept}", "", split))
    return Duplicates(positions, rejected)


def assemble(
    parts: list[Done], duplicates: Duplicates, name: str, description: str, rate: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Writes the dataset out of finished parts, which stay as they are.

    Args:
      parts: all of them, in the order of the input.
      duplicates: clips to leave out.
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
            drop = duplicates.positions.get((number, split), set())
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
    writer = array_record_module.ArrayRecordWriter(os.fspath(target), "group_size:1")
    for index in range(len(records)):
        if index not in drop:
            writer.write(records[index])
    writer.close()
