"""Tables of captions: CSV, TSV, JSON Lines and JSON, with messages that name file and line."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from input_pipeline.formats.rows import FormatError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that is being read; only a list in a .json file is in memory as a whole.

    Attributes:
      path: the file.
      columns: their names, in order.
      rows: line number (from 1) and cells by column; to be gone through once.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Iterator[tuple[int, dict[str, Any]]]

    def where(self, line: int) -> str:
        """What messages call a row."""
        return f"{self.path.name} line {line}"


def text_lines(path: Path, encoding: str = "") -> Iterator[str]:
    """The lines of a text file: UTF-8 (with or without mark), UTF-16 with a mark, or `encoding`.

    Yields:
      Each with its end as it stands in the file.

    Raises:
      FormatError: it is none of these; the message shows the place and likely remedy.
    """
    with path.open("rb") as file:
        marked = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    try:
        with path.open(encoding=encoding or ("utf-16" if marked else "utf-8-sig"), newline="") as f:
            yield from f
    except LookupError as error:
        raise FormatError(f"--encoding={encoding}: Python knows no such encoding") from error
    except UnicodeDecodeError as error:
        if encoding or marked:
            what = encoding or "utf-16"
            raise FormatError(f"{path}: not in the encoding {what} ({error})") from error
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> FormatError:
    """What to say of a file that is not UTF-8, with the first place that shows it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                around = line[max(0, error.start - 20) : error.start + 20].decode(
                    "cp1252", "replace"
                )
                return FormatError(
                    f"{path}: not UTF-8: line {number} has the byte 0x{line[error.start]:02x},"
                    f" which in Windows-1252 reads {' '.join(around.split())!r}. If that is right,"
                    " give --encoding=cp1252; else name its encoding, or save the table as UTF-8"
                )
    return FormatError(f"{path}: changed while it was read")


def read_text(path: Path, encoding: str = "") -> str:
    """A whole text file; encodings and errors as `text_lines`."""
    return "".join(text_lines(path, encoding))


def read_table(
    path: Path, *, encoding: str = "", header: tuple[str, ...] = (), comments: bool = False
) -> Table:
    """Opens a table.

    Args:
      path: .csv, .tsv, .jsonl, .ndjson, or .json (a list of objects).
      encoding: of a file that is not UTF-8.
      header: column names of a file that has none.
      comments: leave out lines that begin with '#'.

    Raises:
      FormatError: nothing in it, or damaged; of damage further down while its rows are read.
    """
    suffix = path.suffix.lower()
    rows: Iterator[tuple[int, dict[str, Any]]]
    if suffix in (".jsonl", ".ndjson"):
        # A field may appear in any line, so all are read once for the names alone.
        columns = _fields(path, _json_lines(path, encoding))
        rows = _json_lines(path, encoding)
    elif suffix == ".json":
        listed = _json_list(path, read_text(path, encoding))
        columns, rows = _fields(path, listed), iter(listed)
    else:
        columns, rows = _separated(path, text_lines(path, encoding), header, comments)
    first = next(rows, None)
    if first is None:
        what = "it has a header but no rows" if columns else "it is empty"
        raise FormatError(f"{path}: {what}: there is nothing to prepare")
    return Table(path, columns, itertools.chain([first], rows))


def header_of(path: Path) -> tuple[str, ...]:
    """The column names of a CSV or TSV, without reading it all; () if that is impossible."""
    try:
        with path.open("rb") as file:
            line = file.readline(65536).decode("utf-8-sig", "replace")
    except OSError:
        return ()
    cells = next(csv.reader([line], delimiter=_delimiter(path, line)), [])
    return tuple(cell.strip() for cell in cells)


def _delimiter(path: Path, first: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t|", key=first.count)


def _separated(
    path: Path, lines: Iterator[str], header: tuple[str, ...], comments: bool
) -> tuple[tuple[str, ...], Iterator[tuple[int, dict[str, Any]]]]:
    """Columns and rows of a CSV or TSV."""
    before = []  # comments, and the first line that is none
    for line in lines:
        before.append(line)
        if not (comments and line[:1] == "#"):
            break
    delimiter = _delimiter(path, before[-1] if before else "")
    # Captions longer than Python's default of 131,072 characters exist (generated Q&A).
    csv.field_size_limit(1 << 27)
    reader = csv.reader(
        _without_zeros(path, itertools.chain(before, lines)),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=True,
    )
    cells = _filled(path, reader, comments)
    columns = header
    if not columns:
        columns = tuple(cell.strip() for cell in next(cells, (0, []))[1])
        repeated = sorted({name for name in columns if columns.count(name) > 1})
        if repeated:
            raise FormatError(f"{path}: two columns are called {repeated[0]!r}")
    return columns, _named(path, columns, cells, delimiter)


def _without_zeros(path: Path, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if "\0" in line:
            raise FormatError(
                f"{path}: it holds zero bytes: not a table, or UTF-16 without its mark"
            )
        yield line


def _filled(path: Path, reader: Any, comments: bool) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every line with something in it."""
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and not (comments and cells[0][:1] == "#"):
                yield reader.line_num, cells
    except csv.Error as error:
        raise FormatError(f"{path}: line {reader.line_num} cannot be read: {error}") from error


def _named(
    path: Path, columns: tuple[str, ...], rows: Iterator[tuple[int, list[str]]], delimiter: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, cells in rows:
        if len(cells) != len(columns):
            raise FormatError(
                f"{path}: line {line} has {len(cells)} cells, the header {len(columns)}: text that"
                f" holds a {delimiter!r} must stand in double quotes"
            )
        yield line, dict(zip(columns, cells, strict=True))


def _fields(path: Path, rows: Iterable[tuple[int, Any]]) -> tuple[str, ...]:
    """The names of the fields of all objects."""
    columns: dict[str, None] = {}
    for line, row in rows:
        if not isinstance(row, dict):
            raise FormatError(f"{path}: line {line} holds no object with named fields: {row!r:.80}")
        columns.update(dict.fromkeys(row))
    return tuple(columns)


def _json_lines(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text_lines(path, encoding), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise FormatError(f"{path}: line {number} is not JSON: {error}") from error


def _json_list(path: Path, text: str) -> list[tuple[int, Any]]:
    try:
        content = json.loads(text) if text.strip() else []
    except ValueError as error:
        raise FormatError(f"{path}: not JSON (cut off?): {error}") from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise FormatError(f"{path}: needed is a list of objects, or one under the key 'data'")
    return list(enumerate(content, 1))
