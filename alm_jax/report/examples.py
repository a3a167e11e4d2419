"""Which clips and captions a report shows, and what the model finds for them.

Examples are drawn by a hash of the clip's id and spread over kinds of sound, never by how well the
model does on them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.metrics.ranking import unit_grid
from alm_jax.evaluators.suite import Evaluation, Model, ZeroShotAnswers

# Asked in words of nobody's caption, so there is no right answer to mark.
FREE_QUERIES = (
    "a dog barking",
    "glass shatters",
    "somebody walks through snow",
    "a loud explosion",
    "a long low note on a string instrument",
    "a woman speaks French",
)
HITS = 5


@dataclasses.dataclass(frozen=True)
class Hit:
    """One sound found for a text.

    Attributes:
      clip: its index in the split.
      score: cosine of the two embeddings.
      caption: its true caption.
      right: whether that is the query.
    """

    clip: int
    score: float
    caption: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Query:
    """A text and the sounds found for it.

    Attributes:
      text: the query.
      kind: what kind of sound the caption belongs to, '' for free text.
      hits: the best sounds, best first.
      rank: place of the best right sound in the whole gallery, ties against the model; None for
        free text.
      wanted: how many sounds have this caption.
    """

    text: str
    kind: str
    hits: list[Hit]
    rank: int | None
    wanted: int


def kind_of(clips: Clips) -> NDArray:
    """Str [n]: 'rendered note', or the dataset's kind, with the language of speech."""
    kinds = clips.column("kind")
    language = clips.column("lang")
    named = [
        f"{kind}, {lang}" if kind == "speech" and lang else kind or "sound"
        for kind, lang in zip(kinds, language, strict=True)
    ]
    return np.where(clips.is_note, "rendered note", np.asarray(named))


def spread(clips: Clips, count: int, keep: Callable[[int], bool] = lambda row: True) -> list[int]:
    """Draws clips, taking turns between groups so that rare kinds are seen too.

    Half of the turns go to clips without speech; within each half the kinds take turns. The order
    within a kind is that of a hash of the clip's id.

    Args:
      clips: the split.
      count: how many; fewer if there are not enough.
      keep: rows that may be drawn.

    Returns:
      Rows of the split, no caption twice.
    """
    kinds = kind_of(clips)
    queues: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
    for row in sorted(range(len(clips)), key=lambda row: _hash(clips, row)):
        if keep(row):
            kind = str(kinds[row])
            queues[kind.startswith("speech")].setdefault(kind, []).append(row)
    halves = [_take_turns(list(half.values())) for half in (queues[False], queues[True])]
    drawn: list[int] = []
    told: set[str] = set()
    for row in _take_turns(halves):
        text = clips.caption(row)
        if len(drawn) < count and text not in told:
            told.add(text)
            drawn.append(row)
    return drawn


def _take_turns(queues: Sequence[Sequence[int]]) -> list[int]:
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _hash(clips: Clips, row: int) -> int:
    example = clips.examples[row]
    return zlib.crc32(f"report|{example.get('id', row)}|{example['text']}".encode())


def search_captions(evaluation: Evaluation, count: int) -> list[Query]:
    """Searches all clips of the split with some of their captions.

    Args:
      evaluation: of a split.
      count: number of queries.
    """
    clips = evaluation.clips
    kinds = kind_of(clips)
    rows = spread(clips, count)
    table = clips.caption_of_clip.reshape(len(clips), -1)  # several captions a clip, or one
    audio, text = unit_grid(evaluation.audio, "audio"), unit_grid(evaluation.text, "text")
    queries = []
    for row in rows:
        caption = int(table[row, 0])
        scores = _cosines(text[caption], audio)
        wanted = (table == caption).any(axis=1)
        rank = 1 + int((scores[~wanted] >= scores[wanted].max()).sum())
        hits = _best(scores, clips, wanted)
        queries.append(
            Query(clips.captions[caption], str(kinds[row]), hits, rank, int(wanted.sum()))
        )
    return queries


def search_free(evaluation: Evaluation, model: Model, texts: Sequence[str]) -> list[Query]:
    """Searches all clips of the split with words that are nobody's caption."""
    audio = unit_grid(evaluation.audio, "audio")
    nothing = np.zeros(len(evaluation.clips), bool)
    return [
        Query(text, "", _best(_cosines(row, audio), evaluation.clips, nothing), None, 0)
        for text, row in zip(texts, unit_grid(model.embed_text(texts), "query"), strict=True)
    ]


def _cosines(row: NDArray[np.int32], gallery: NDArray[np.int32]) -> NDArray[np.float64]:
    return gallery.astype(np.float64) @ row.astype(np.float64) / 2.0**50


def _best(scores: NDArray[np.float64], clips: Clips, wanted: NDArray[np.bool_]) -> list[Hit]:
    order = np.argsort(-scores, kind="stable")[:HITS]
    return [
        Hit(int(row), float(scores[row]), clips.caption(row), bool(wanted[row])) for row in order
    ]


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """What became of the clips of one class.

    Attributes:
      name: the class.
      clips: how many.
      right: of which were named right.
      mistaken: (answer, how often), most frequent first.
    """

    name: str
    clips: int
    right: int
    mistaken: list[tuple[str, int]]


def class_table(answers: ZeroShotAnswers) -> list[ClassRow]:
    """One row a class that has clips, the most frequent first."""
    table: dict[str, list[str]] = {}
    for label, answer in zip(answers.task.labels, answers.answers, strict=True):
        table.setdefault(label, []).append(answer)
    rows = []
    for name, given in table.items():
        wrong = {other: given.count(other) for other in given if other != name}
        mistaken = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
        rows.append(ClassRow(name, len(given), given.count(name), mistaken))
    return sorted(rows, key=lambda row: (-row.clips, row.name))
