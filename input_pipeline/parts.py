"""Parts of an input, and the finished shards that they become.

A part is a slice of rows (`plan`), or one tar or parquet file. `write_part` is a pure function of
it and of the settings that leaves a folder with one array_record file a split and, last,
`done.json`; so parts can be made anywhere in any order, and a finished one is never made again. One
clip at a time is in memory. `input_pipeline.assemble` joins them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline.cleaning import Rejected
from input_pipeline.examples import Example, Settings, examples
from input_pipeline.fingerprint import Fingerprint, fingerprint
from input_pipeline.formats import FORMATS
from input_pipeline.formats.rows import Options, Row

VERSION = "1.0.0"
# group_size:1 is what random access needs. zstd's level 3, the default that TFDS takes, makes PCM
# 1.4% smaller for three times the time (1.6 against 0.6 ms for ten seconds).
WRITER = "group_size:1,zstd:1"
_DONE, _PRINTS = "done.json", ".prints.npz"

# `text` is a list: every caption of the clip. Training draws one, evaluation uses them all.
FEATURES = {
    # Encoding.BYTES: as tf.Example integers a negative sample would take ten bytes.
    "audio": tfds.features.Tensor(
        shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
    "text": tfds.features.Sequence(tfds.features.Text(doc="caption")),
    "text_generated": tfds.features.Sequence(
        tfds.features.Text(doc="caption by a model, where text is by people")
    ),
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
      file: what holds its rows, a file of the input or one that `plan` has written.
      content: changes with the rows and their audio.
      listed: whether `plan` has written it.
    """

    name: str
    layout: str
    root: Path
    options: Options
    file: Path
    content: str
    listed: bool = False

    def read(self) -> Iterator[Row]:
        """Its rows."""
        if self.listed:
            yield from pickle.loads(self.file.read_bytes())
            return
        rows_of = FORMATS[self.layout].rows_of
        assert rows_of is not None
        yield from rows_of(self.file, self.root, self.options)

    def digest(self, settings: Settings) -> str:
        """Changes with whatever decides what the part becomes."""
        # These are judged over all parts, later.
        limits = dataclasses.replace(
            settings.limits, max_rejected=0.0, keep_duplicates=False, keep_near_duplicates=True
        )
        settings = dataclasses.replace(settings, limits=limits)
        what = (VERSION, self.layout, self.options, settings, self.content)
        return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()


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
    """What became of a part; its clips and rejected rows stay on disk.

    Attributes:
      folder: where its shards lie.
      rows: how many rows it had.
      sizes: split -> how many examples.
    """

    folder: Path
    rows: int
    sizes: dict[str, int]

    def clips(self) -> dict[str, list[Clip]]:
        """Split -> its examples, in order."""
        listed = self._content()["clips"]
        return {split: [Clip(*clip) for clip in clips] for split, clips in listed.items()}

    def rejected(self) -> list[Rejected]:
        """What gave no example."""
        return [Rejected(**item) for item in self._content()["rejected"]]

    def _content(self) -> dict[str, Any]:
        return json.loads((self.folder / _DONE).read_text(encoding="utf-8"))


def read_done(folder: Path, digest: str) -> Done | None:
    """A finished part; None if it is not finished or was made from something else."""
    path = folder / _DONE
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["digest"] != digest:
        return None
    sizes = {split: len(clips) for split, clips in content["clips"].items()}
    return Done(folder, content["rows"], sizes)


def is_done(part: Part, work: Path) -> bool:
    """Whether a part is there, made from whatever."""
    return (work / part.name / _DONE).is_file()


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
    writers: dict[str, Any] = {}
    clips: dict[str, list[Clip]] = {}
    prints: dict[str, list[Fingerprint]] = {}
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
                writers[split] = array_record_module.ArrayRecordWriter(
                    os.fspath(folder / split), WRITER
                )
            writers[split].write(encode(outcome))
            clips.setdefault(split, []).append(_note(outcome))
            if settings.fingerprints:
                pcm: Any = outcome.features["audio"]
                prints.setdefault(split, []).append(fingerprint(pcm, settings.sample_rate))
    finally:
        for writer in writers.values():
            writer.close()
    for split, found in prints.items():
        _write_prints(folder / f"{split}{_PRINTS}", found)
    content = {
        "digest": digest,
        "rows": count,
        "clips": clips,
        "rejected": [item.as_dict() for item in rejected],
    }
    unfinished = folder / f"{_DONE}.part"
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.rename(folder / _DONE)
    return Done(folder, count, {split: len(found) for split, found in clips.items()})


def _write_prints(path: Path, prints: list[Fingerprint]) -> None:
    np.savez(
        path,
        landmarks=np.concatenate([found.landmarks for found in prints]),
        frames=np.concatenate([found.frames for found in prints]),
        sizes=np.array([len(found.landmarks) for found in prints]),
    )


def read_prints(done: Done, split: str) -> list[Fingerprint]:
    """The landmarks of a finished part's clips, in order (`Settings.fingerprints`)."""
    with np.load(done.folder / f"{split}{_PRINTS}") as stored:
        ends = np.cumsum(stored["sizes"])[:-1]
        columns = (np.split(stored[name], ends) for name in ("landmarks", "frames"))
        return [Fingerprint(*pair) for pair in zip(*columns, strict=True)]


def read_pcm(done: Done, split: str, position: int) -> np.ndarray:
    """The PCM, int16 [S], of a finished part's clip."""
    path = os.fspath(done.folder / split)
    record = array_record_data_source.ArrayRecordDataSource([path])[position]
    features = tf_example_pb2.Example.FromString(record).features.feature
    return np.frombuffer(features["audio"].bytes_list.value[0], np.int16)


def encode(example: Example) -> bytes:
    """The serialised tf.train.Example that TFDS would write of `FEATURES`, in half the time."""
    message = tf_example_pb2.Example()
    for name, value in example.features.items():
        feature: Any = message.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
            continue
        values: Any = [value] if isinstance(value, str | np.ndarray) else value
        feature.bytes_list.SetInParent()  # also where the list is empty
        feature.bytes_list.value.extend(
            item.tobytes() if isinstance(item, np.ndarray) else item.encode("utf-8", "replace")
            for item in values
        )
    return message.SerializeToString()


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
