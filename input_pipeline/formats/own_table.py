"""A folder of audio with a table (CSV, TSV, JSON Lines), or with nothing but the audio."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.audio_files import find_audio_files
from input_pipeline.formats.audio_lookup import AudioFiles
from input_pipeline.formats.columns import Columns, choose_columns
from input_pipeline.formats.rows import (
    Format,
    FormatError,
    Options,
    Row,
    canonical_split,
    split_of_path,
)
from input_pipeline.formats.tables import SUFFIXES, Table, read_table

_OURS = ("prepare_report.json", "dataset_info.json", "features.json", "rejected.jsonl")


def tables_in(root: Path) -> list[Path]:
    """The tables of an input: itself, those in the folder, or else those one folder below."""
    if root.is_file():
        return [root] if root.suffix.lower() in SUFFIXES else []
    for pattern in ("*", "*/*"):
        found = sorted(
            path
            for path in root.glob(pattern)
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and path.name not in _OURS
            and not path.name.startswith(".")
        )
        if found:
            return found
    return []


def recognise(root: Path) -> str | None:
    """Whether there is a table."""
    found = tables_in(root)
    if not found:
        return None
    return f"there is the table {found[0].name}" + (
        f" and {len(found) - 1} more" if found[1:] else ""
    )


def rows(root: Path, options: Options) -> Iterator[Row]:
    """Rows of every table of the input.

    A clip may stand in several rows, each with a caption. Without a column of ids the path of the
    audio is the id, with the span where there is one. Tables called after a split (`train.csv`)
    say which split their rows are in, unless a column does.

    Raises:
      FormatError: no table, a table that cannot be understood, or two clips with one id.
    """
    found = tables_in(root)
    if not found:
        raise FormatError(
            f"{root}: no table (CSV, TSV, JSONL) beside the audio. It needs a column with the"
            " files' names and one with captions; audio alone is taken with --format=audio"
        )
    base = root if root.is_dir() else root.parent
    for path in found:
        table = read_table(path, encoding=options.encoding)
        columns = choose_columns(path, table.columns, options)
        if not columns.captions and not columns.label:
            raise FormatError(
                f"{path}: which column holds the captions? It has"
                f" {', '.join(map(repr, table.columns))}; say --caption-column=NAME"
            )
        print(f"prepare: {path.name}: {columns}", flush=True)
        yield from _table_rows(table, columns, base, options)


def _table_rows(table: Table, columns: Columns, base: Path, options: Options) -> Iterator[Row]:
    files = AudioFiles(options.audio_dir, table.path.parent, base)
    split_here = split_of_path(table.path, base)
    for line, cells in table.rows:
        where = table.where(line)
        name = str(cells.get(columns.audio) or "").strip()
        try:
            audio = files.find(name)
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from error
        start = seconds(cells.get(columns.start), where, columns.start) or 0.0
        end = seconds(cells.get(columns.end), where, columns.end)
        if (length := seconds(cells.get(columns.duration), where, columns.duration)) is not None:
            end = start + length
        span = f"#{start:g}-{'' if end is None else f'{end:g}'}" if start or end else ""
        split = canonical_split(cells.get(columns.split))
        yield Row(
            id=str(cells.get(columns.id) or "").strip() or name + span,
            audio=audio,
            captions=texts([cells.get(column) for column in columns.captions]),
            generated=texts([cells.get(column) for column in columns.generated]),
            labels=texts([cells.get(columns.label)], separators=";,|"),
            split=split or split_here,
            licence=str(cells.get(columns.licence) or ""),
            source=str(cells.get(columns.source) or ""),
            fold=_whole(cells.get(columns.fold)),
            start=start,
            end=end,
            group=name,
            where=where,
            problem="" if audio else files.why_missing(name),
        )


def seconds(value: Any, where: str, column: str) -> float | None:
    """A cell as seconds; None where it is empty.

    Raises:
      FormatError: it is no number, or negative.
    """
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise FormatError(f"{where}: {column}={value!r} is no number of seconds")
    return number


def texts(values: list[Any], separators: str = "") -> tuple[str, ...]:
    """Cells as texts: a cell may be a string, a list of strings, or a JSON list in a string.

    Args:
      values: cells.
      separators: the first of these characters that a string holds parts it (labels).
    """
    found: list[str] = []
    for value in values:
        if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
            with contextlib.suppress(ValueError):  # an ordinary text in brackets stays one
                value = json.loads(value)
        if isinstance(value, list | tuple):
            found += [str(item) for item in value if item is not None]
        elif value is not None:
            text = str(value)
            separator = next((s for s in separators if s in text), None)
            found += text.split(separator) if separator else [text]
    return tuple(text.strip() for text in found if text.strip())


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def audio_rows(root: Path, options: Options) -> Iterator[Row]:
    """Every audio file of a folder, without captions (for training on audio alone).

    Where all files lie in folders called train, valid, test and the like, these are the splits.
    """
    base = options.audio_dir or root
    tops = (path.relative_to(base).parts[0] for path in find_audio_files(base))
    splits = all(canonical_split(top) in ("train", "validation", "test") for top in tops)
    for path in find_audio_files(base):
        name = path.relative_to(base)
        split = canonical_split(name.parts[0]) if splits else ""
        yield Row(name.as_posix(), path, split=split, where=str(path))


TABLE = Format(
    "table", "a folder of audio with a CSV, TSV or JSON Lines table, or the table", recognise, rows
)
AUDIO = Format("audio", "a folder of audio without any text", lambda root: None, audio_rows)
