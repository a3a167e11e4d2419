"""What an adapter yields: one `Row` a clip, and the pieces of work that rows come in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from alm_jax.errors import UserError

CaptionKind = Literal["", "human", "generated", "labels"]

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CANONICAL = {word: split for split, words in _SPLITS.items() for word in words}


class FormatError(UserError):
    """Input that is not in the layout that it was taken for; the message names file and remedy."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One clip as a corpus describes it, not decoded.

    Attributes:
      id: unique within the corpus.
      audio: the file, or its content; None where the corpus names audio that is not there.
      captions: any number; empty ones are dropped later.
      labels: class names or tags, as published.
      split: its split; "" where the corpus has none (then `group` decides).
      licence: of the clip, as stated.
      source: where the clip comes from.
      fold: number of its cross-validation fold, 0 where there are none.
      start: where in the audio the clip begins, in seconds.
      end: where it ends, in seconds; None: at the end of the audio.
      group: clips of one group belong on one side of a split; "" stands for `id`.
      where: what messages call it: table and line, tar and member.
      problem: why `audio` is None.
      caption_kind: who wrote the captions; "" if unknown.
      generated: captions that a model wrote, where `captions` are of people.
    """

    id: str
    audio: Path | bytes | None
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    split: str = ""
    licence: str = ""
    source: str = ""
    fold: int = 0
    start: float = 0.0
    end: float | None = None
    group: str = ""
    where: str = ""
    problem: str = ""
    caption_kind: CaptionKind = ""
    generated: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Options:
    """What a person may say about an input; everything else is detected.

    Attributes:
      audio_column, caption_columns, generated_columns, id_column, split_column, label_column,
        start_column, end_column: names of columns.
      encoding: of tables that are not UTF-8.
      audio_dir: where the audio lies, if not below the input.
      captions: a table of captions by id, for a corpus that has labels only.
    """

    audio_column: str = ""
    caption_columns: tuple[str, ...] = ()
    generated_columns: tuple[str, ...] = ()
    id_column: str = ""
    split_column: str = ""
    label_column: str = ""
    start_column: str = ""
    end_column: str = ""
    encoding: str = ""
    audio_dir: Path | None = None
    captions: Path | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """A layout that can be read. Either `rows` (from tables) or `files` and `rows_of` are given.

    Attributes:
      name: what `--format` calls it.
      title: one line for people.
      recognise: why a folder or file is in this layout; None if it is not.
      rows: every row of the input; a clip with several captions may come in several rows.
      files: the files that hold audio and text together (tar, parquet).
      rows_of: the rows of one of them; a pure function of (file, input, options).
      published: a corpus with splits of its own, whose held-out clips must stay all there.
      partial: audio may be missing as a matter of course (videos that are gone).
    """

    name: str
    title: str
    recognise: Callable[[Path], str | None]
    rows: Callable[[Path, Options], Iterator[Row]] | None = None
    files: Callable[[Path], list[Path]] | None = None
    rows_of: Callable[[Path, Path, Options], Iterator[Row]] | None = None
    published: bool = False
    partial: bool = False


def canonical_split(name: object) -> str:
    """`train`, `validation` or `test` for the usual words for them; other names as identifiers."""
    word = str(name or "").strip().lower()
    return _CANONICAL.get(word) or re.sub(r"\W+", "_", word).strip("_")


def split_of_path(path: Path, root: Path) -> str:
    """The split that a file's name or one of its folders below `root` names; "" if none does."""
    for part in (path.name, *reversed(path.relative_to(root).parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _CANONICAL:
                return _CANONICAL[word]
    return ""


def merge_captions(rows: Iterable[Row], what: str) -> Iterator[Row]:
    """Joins rows that describe one clip (equal id, audio and span) into one with all captions.

    Raises:
      FormatError: two rows have one id but different audio.
    """
    merged: dict[str, Row] = {}
    for row in rows:
        known = merged.get(row.id)
        if known is None:
            merged[row.id] = row
            continue
        if (known.audio, known.start, known.end) != (row.audio, row.start, row.end):
            raise FormatError(
                f"{what}: two rows have the id {row.id!r} but different audio"
                f" ({known.where}: {_shown(known)}; {row.where}: {_shown(row)}): give each clip an"
                " id of its own, or name another column with --id-column"
            )
        if known.split != row.split:
            raise FormatError(
                f"{what}: the clip {row.id!r} is in two splits ({known.where}: {known.split!r};"
                f" {row.where}: {row.split!r})"
            )
        merged[row.id] = dataclasses.replace(
            known,
            captions=known.captions + row.captions,
            generated=tuple(dict.fromkeys(known.generated + row.generated)),
            labels=tuple(dict.fromkeys(known.labels + row.labels)),
        )
    yield from merged.values()


def _shown(row: Row) -> str:
    span = f" from {row.start:g} s" if row.start or row.end is not None else ""
    return f"{row.audio if isinstance(row.audio, Path) else 'no audio'}{span}"
