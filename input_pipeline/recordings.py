"""Sets of recordings: what is compared of a clip, and clips of one set looked up in another."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from input_pipeline.cleaning import pcm_digest
from input_pipeline.fingerprint import RATE, Fingerprint, at_rate, fingerprint
from input_pipeline.fingerprint_index import Index, matches
from input_pipeline.origins import Origin, Origins, origin
from input_pipeline.pool import mapped
from input_pipeline.sources import Source, open_source, resolve_version

# What `fingerprint.same_recording` gives for one recording twice, at least; see docs/data.md.
CORRELATION = 0.65
_PER_CHUNK = 64
_KEPT_CLIPS = 256


@dataclasses.dataclass(frozen=True)
class Clip:
    """What is compared of a clip.

    Attributes:
      id: in its dataset.
      origin: see `origins.origin`.
      digest: hash of its PCM.
      print: its landmarks.
    """

    id: str
    origin: Origin | None
    digest: str
    print: Fingerprint


@dataclasses.dataclass(frozen=True)
class Overlap:
    """A training clip and the clip of the evaluation set that it shares a recording with.

    Attributes:
      train: position among the training clips.
      evaluation: position among those of the evaluation.
      by: `id`, `pcm` or `sound`, the first of these that tells.
      correlation: of the samples where both have them, 0..1; 1 for `pcm`, NaN for `id`.
      seconds: that both have; NaN for `id`.
    """

    train: int
    evaluation: int
    by: str
    correlation: float
    seconds: float


class Reference:
    """A set of clips in which others are looked up: all its landmarks, but its samples on disk.

    Attributes:
      ids: of the clips.
    """

    def __init__(
        self, clips: Sequence[Clip], sample_rate: int, pcm: Callable[[int], np.ndarray]
    ) -> None:
        """Takes clips that were `read`, their rate in Hz and a reader of their PCM, int16 [S]."""
        self.ids = [clip.id for clip in clips]
        self._origins = Origins(clip.origin for clip in clips)
        self._digests: dict[str, list[int]] = {}
        for position, clip in enumerate(clips):
            self._digests.setdefault(clip.digest, []).append(position)
        self._index = Index([clip.print for clip in clips])
        self._audio = functools.lru_cache(_KEPT_CLIPS)(
            lambda position: at_rate(pcm(position), sample_rate)
        )

    def find(self, position: int, clip: Clip, audio: Callable[[], np.ndarray]) -> list[Overlap]:
        """What a clip shares a recording with, in the order of the reference.

        Args:
          position: of the clip, for `Overlap.train`.
          clip: it.
          audio: gives its samples, float32 [S] at `fingerprint.RATE`.
        """
        found: dict[int, Overlap] = {}
        for other in self._origins.find(clip.origin):
            found[other] = Overlap(position, other, "id", np.nan, np.nan)
        for other in self._digests.get(clip.digest, ()):
            seconds = len(self._audio(other)) / RATE
            found.setdefault(other, Overlap(position, other, "pcm", 1.0, seconds))
        heard = matches(self._index, clip.print, audio, self._audio, least=CORRELATION)
        for other, correlation, seconds in heard:
            found.setdefault(other, Overlap(position, other, "sound", correlation, seconds))
        return [found[other] for other in sorted(found)]


def read(sources: Sequence[Source], workers: int, title: str) -> Iterator[Clip]:
    """Computes what is compared of every clip, in order, on `workers` processes.

    Args:
      sources: splits, one after the other.
      workers: processes; 0 uses this one.
      title: of the progress bar.
    """
    pieces = [
        (source, range(first, min(first + _PER_CHUNK, len(source))))
        for source in sources
        for first in range(0, len(source), _PER_CHUNK)
    ]
    total = sum(map(len, sources))
    with tqdm(total=total, desc=title, unit="clip", delay=2.0, file=sys.stderr) as bar:
        for clips in mapped(_read_piece, pieces, workers if len(pieces) > 3 else 0):
            yield from clips
            bar.update(len(clips))


def _read_piece(piece: tuple[Source, range]) -> list[Clip]:
    source, positions = piece
    clips = []
    for position in positions:
        example = source[position]
        pcm, rate = example["audio"], source.sample_rate or 16000
        clips.append(Clip(example["id"], origin(example), pcm_digest(pcm), fingerprint(pcm, rate)))
    return clips


def open_splits(name: str, *, held_out: bool) -> list[Source]:
    """Opens DIR or DIR:SPLIT; without a split the one for training, or all others.

    Raises:
      UserError: no such dataset or split.
    """
    directory, colon, split = name.rpartition(":")
    if not colon or "/" in split or "\\" in split:
        directory, split = name, ""
    folder = resolve_version(directory)
    if not split:
        info = json.loads((Path(folder) / "dataset_info.json").read_text(encoding="utf-8"))
        names = [entry["name"] for entry in info["splits"] if any(map(int, entry["shardLengths"]))]
        wanted = [split for split in names if (split != "train") == held_out] or names
    else:
        wanted = [split]
    return [open_source(folder, split) for split in wanted]


def reader(sources: Sequence[Source]) -> Callable[[int], np.ndarray]:
    """Position over all sources -> PCM int16 [S]."""
    ends = np.cumsum([len(source) for source in sources])

    def pcm(position: int) -> np.ndarray:
        number = int(np.searchsorted(ends, position, side="right"))
        return sources[number].audio_and_captions(
            position - int(ends[number - 1] if number else 0)
        )[0]

    return pcm


def reference(sources: Sequence[Source], workers: int, title: str) -> Reference:
    """All clips of some splits, ready to look others up in."""
    rate = sources[0].sample_rate or 16000
    return Reference(list(read(sources, workers, title)), rate, reader(sources))
