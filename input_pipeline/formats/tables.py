"""Tables of captions: CSV, TSV, JSON Lines and JSON, with messages that name file and line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.formats.rows import FormatError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
      path: the file.
      columns: their names, in order.
      rows: line number (from 1) and cells by column.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, Any]]]

    def where(self, line: int) -> str:
        """What messages call a row."""
        return f"{self.path.name} line {line}"


def read_text(path: Path, encoding: str = "") -> str:
    """A text file: UTF-8 (with or without mark), UTF-16 with a mark, or `encoding`.

    Raises:
      FormatError: it is none of these; the message shows the place and likely remedy.
    """
    data = path.read_bytes()
    if encoding:
        try:
            return data.decode(encoding)
        except LookupError as error:
            raise FormatError(f"--encoding={encoding}: Python knows no such encoding") from error
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not in the encoding {encoding} ({error})") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        around = data[max(0, error.start - 20) : error.start + 20].decode("cp1252", "replace")
        raise FormatError(
            f"{path}: not UTF-8: line {line} has the byte 0x{data[error.start]:02x}, which in"
            f" Windows-1252 reads {' '.join(around.split())!r}. If that is right, give"
            " --encoding=cp1252; else name its encoding, or save the table as UTF-8"
        ) from error


def read_table(
    path: Path, *, encoding: str = "", header: tuple[str, ...] = (), comments: bool = False
) -> Table:
    """Reads a table.

    Args:
      path: .csv, .tsv, .jsonl, .ndjson, or .json (a list of objects).
      encoding: of a file that is not UTF-8.
      header: column names of a file that has none.
      comments: leave out lines that begin with '#'.

    Raises:
      FormatError: nothing in it, or damaged.
    """
    text = read_text(path, encoding)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        table = _json(path, text, lines=suffix != ".json")
    else:
        table = _separated(path, text, header, comments)
    if not table.rows:
        what = "it has a header but no rows" if table.columns else "it is empty"
        raise FormatError(f"{path}: {what}: there is nothing to prepare")
    return table


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


def _separated(path: Path, text: str, header: tuple[str, ...], comments: bool) -> Table:
    if "\0" in text:
        raise FormatError(f"{path}: it holds zero bytes: not a table, or UTF-16 without its mark")
    first = next((line for line in text.splitlines() if not (comments and line[:1] == "#")), "")
    delimiter = _delimiter(path, first)
    # Captions longer than Python's default of 131,072 characters exist (generated Q&A).
    csv.field_size_limit(1 << 27)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    columns = header
    rows = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if comments and cells[0].startswith("#"):
                continue
            if not columns:
                columns = tuple(cell.strip() for cell in cells)
                repeated = sorted({name for name in columns if columns.count(name) > 1})
                if repeated:
                    raise FormatError(f"{path}: two columns are called {repeated[0]!r}")
                continue
            if len(cells) != len(columns):
                raise FormatError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header"
                    f" {len(columns)}: text that holds a {delimiter!r} must stand in double quotes"
                )
            rows.append((reader.line_num, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise FormatError(f"{path}: line {reader.line_num} cannot be read: {error}") from error
    return Table(path, columns, rows)


def _json(path: Path, text: str, lines: bool) -> Table:
    rows = list(_json_lines(path, text)) if lines else _json_list(path, text)
    columns: dict[str, None] = {}
    for line, row in rows:
        if not isinstance(row, dict):
            raise FormatError(f"{path}: line {line} holds no object with named fields: {row!r:.80}")
        columns.update(dict.fromkeys(row))
    return Table(path, tuple(columns), rows)


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
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
