"""A held-out split as an evaluation sees it: clips, distinct captions, subsets, labelled classes.

Shapes: n clips, m distinct captions, k labelled clips.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.retrieval import distinct_captions
from input_pipeline.opensounds import index
from input_pipeline.sources import Source, open_source

# Templates in the words of the training captions; '{a}' is the class name with its article.
NOTE_TEMPLATES = ("{a} playing the note C3", "{a} playing the note C4", "{a} playing the note C5")
EFFECT_TEMPLATES = ("{}", "the sound of {a}", "{}, sound effect", "{}, music sample")


def _first(value: Any) -> Any:
    """The first of a list of texts (datasets of `alm prepare --input` have such), "" of none."""
    if isinstance(value, tuple | np.ndarray):
        return value[0] if len(value) else ""
    return value


@dataclasses.dataclass(frozen=True)
class Clips:
    """A split without its audio.

    Attributes:
      directory: the dataset's folder.
      split: the split's name.
      fingerprint: hash of the split.
      sample_rate: of its audio in Hz, None where the dataset does not say.
      examples: features of every clip.
      captions: the m distinct captions.
      caption_of_clip: int [n], or [n, most captions a clip] filled up with -1.
    """

    directory: str
    split: str
    fingerprint: str
    sample_rate: int | None
    examples: tuple[dict[str, Any], ...]
    captions: list[str]
    caption_of_clip: np.ndarray

    @classmethod
    def read(cls, directory: str | os.PathLike[str], split: str) -> Clips:
        """Opens a prepared dataset; errors as `input_pipeline.sources.open_source`."""
        return cls.of(open_source(directory, split))

    @classmethod
    def of(cls, source: Source) -> Clips:
        """What an open split holds beside its audio; reads it once."""
        examples = tuple(source.metadata())
        captions, caption_of_clip = distinct_captions([e["text"] for e in examples])
        return cls(
            source.directory,
            source.split,
            source.fingerprint,
            source.sample_rate,
            examples,
            captions,
            caption_of_clip,
        )

    def metadata(self) -> Iterator[dict[str, Any]]:
        """Yields every example in order without its audio, as the source does."""
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def column(self, name: str) -> np.ndarray:
        """A text feature of every clip, str [n]: of several texts the first, '' for none."""
        return np.asarray([_first(example.get(name, "")) for example in self.examples])

    def caption(self, row: int) -> str:
        """The clip's caption; the first one where it has several."""
        return _first(self.examples[row]["text"])

    @functools.cached_property
    def references(self) -> list[tuple[str, ...]]:
        """All captions of every clip."""
        texts = (example["text"] for example in self.examples)
        return [(text,) if isinstance(text, str) else tuple(text) for text in texts]

    def require_several(self) -> None:
        """Refuses a split of one clip, of which any model finds all.

        Raises:
          UserError: it is one.
        """
        if len(self) < 2:
            raise UserError(
                f"{self.directory}, split {self.split!r}, has one clip: a share of one clip is no "
                "measurement; give another split or dataset"
            )

    def require_captions(self) -> None:
        """Refuses clips without a caption, which a model with a text side cannot be scored on.

        Raises:
          UserError: there are some.
        """
        bare = [row for row, own in enumerate(self.references) if not own]
        if bare:
            raise UserError(
                f"{len(bare)} of the {len(self)} clips of {self.directory}, split {self.split!r}, "
                f"have no caption (the first is {self.examples[bare[0]].get('id', bare[0])!r}): "
                "retrieval and captioning need one each; prepare the data without "
                "--allow-no-caption, or evaluate on another split"
            )

    def audio(self, rows: Iterable[int]) -> list[np.ndarray]:
        """PCM int16 [S] of some clips."""
        return [self._source.audio_and_captions(int(row))[0] for row in rows]

    @functools.cached_property
    def _source(self) -> Source:
        return open_source(self.directory, self.split)

    def audio_chunks(
        self, progress: str, size: int, rows: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[list[np.ndarray]]:
        """Yields the PCM int16 [S] of all clips or of `rows`, `size` at a time, with a bar.

        Where several processes have a part each, the first one shows the bar of its own.
        """
        rows = range(len(self)) if rows is None else rows
        hidden = jax.process_index() > 0
        with tqdm(total=len(rows), desc=progress, unit="clip", disable=hidden) as bar:
            for first in range(0, len(rows), size):
                chunk = rows[first : first + size]
                yield self.audio(chunk)
                bar.update(len(chunk))

    @functools.cached_property
    def is_note(self) -> np.ndarray:
        """Bool [n], True for notes rendered from a soundfont (OpenSounds)."""
        return np.asarray([".sf2#" in str(example.get("id", "")) for example in self.examples])

    @functools.cached_property
    def subsets(self) -> dict[str, tuple[str, np.ndarray]]:
        """Suffix of the results' names -> (what the clips are, bool [n]); '' is the main one.

        A set of fewer than two clips, or equal to the main one, is left out.
        """
        recorded, speech = ~self.is_note, self.column("kind") == "speech"
        if not recorded.any():
            recorded = np.ones(len(self), bool)
        found = {"": ("recorded clips" if self.is_note.any() else "all clips", recorded)}
        for suffix, what, chosen in (
            ("_speech", "recorded speech", recorded & speech),
            ("_not_speech", "recorded clips without speech", recorded & ~speech),
            ("_with_notes", "recorded clips and rendered notes", np.ones(len(self), bool)),
        ):
            if chosen.sum() >= 2 and (chosen != recorded).any():
                found[suffix] = (what, chosen)
        return found


@dataclasses.dataclass(frozen=True)
class ZeroShotTask:
    """Clips to be named by one of several classes.

    Attributes:
      name: end of the results' prefix, `eval/zero_shot/{name}`.
      title: what it is, for people.
      clips: int [k], indices of the labelled clips.
      labels: their classes.
      classes: all answers on offer.
      templates: prompt templates, averaged.
    """

    name: str
    title: str
    clips: np.ndarray
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...]


def zero_shot_tasks(clips: Clips) -> list[ZeroShotTask]:
    """The tasks that a split has labelled clips for.

    The answers on offer are those of the whole OpenSounds index (and any other label met), so that
    chance is the same for every tier.
    """
    known = [row for row in index.rows() if row.zeroshot_label]
    tasks = []
    for name, title, chosen, offered, templates in (
        (
            "general_midi",
            "General MIDI instruments",
            clips.is_note,
            {row.zeroshot_label for row in known if row.is_note},
            NOTE_TEMPLATES,
        ),
        (
            "effects",
            "effect classes",
            ~clips.is_note,
            {row.zeroshot_label for row in known if not row.is_note},
            EFFECT_TEMPLATES,
        ),
    ):
        labels = clips.column("zeroshot_label")
        rows = np.flatnonzero(chosen & (labels != ""))
        if rows.size:
            found = tuple(labels[rows].tolist())
            classes = tuple(sorted(offered | set(found)))
            tasks.append(ZeroShotTask(name, title, rows, found, classes, templates))
    return tasks
