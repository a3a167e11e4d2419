"""Rows of tables -> parts on disk. The rows of an input are never all in memory.

The rows go into one file as they come, and of each a hash of its id and the size of its audio are
kept: 17 bytes a row. From these follows which part a row belongs to, so that the rows of one clip,
wherever in the tables they stand, meet in one part; then the file is read once more and its rows
are dealt out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pickle
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from input_pipeline.cleaning import Rejected, RejectedLog
from input_pipeline.examples import Settings, split_of
from input_pipeline.formats.rows import Format, FormatError, Options, Row, merge_captions
from input_pipeline.parts import Part

# Ten seconds at 16 kHz are 320 kB: a shard of about 160 MB.
_ROWS_PER_PART = 512
# Beyond two million clips parts grow instead: a reader holds a file open for every shard.
_MOST_PARTS = 4096
# Encoded audio of a part: hour-long files come a few at a time.
_BYTES_PER_PART = 1 << 30
_ROWS_AT_A_TIME = 1024
# Rows in memory that wait for others of their part; beyond it they wait on disk.
_WAITING = 1 << 16

_Noted = tuple[Row, tuple[int, int]]  # a row; size and time of its file


@dataclasses.dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
      parts: the pieces of work, in the order of the input.
      digest: changes with whatever stands in the input.
      absent: clips whose audio is not there; they are in no part.
    """

    parts: list[Part]
    digest: str
    absent: int = 0


def plan_files(chosen: Format, root: Path, options: Options) -> Plan:
    """A part for every tar, parquet or Arrow file.

    Raises:
      FormatError: there is none.
    """
    assert chosen.files is not None
    files = chosen.files(root)
    if not files:
        raise FormatError(f"--input={root}: no file of the format {chosen.name} there")
    parts = []
    for number, file in enumerate(files):
        status = file.stat()  # a file that was mended or replaced is read again
        content = f"{file} {status.st_size} {status.st_mtime_ns}"
        parts.append(Part(f"{number:06d}", chosen.name, root, options, file, content))
    return Plan(parts, _digest(part.content for part in parts))


def plan_rows(
    chosen: Format, root: Path, options: Options, settings: Settings, folder: Path, log: RejectedLog
) -> Plan:
    """Parts of a few hundred clips each, from the rows of tables.

    Args:
      chosen: the format, one with `rows`.
      root: the input.
      options: the person's.
      settings: of the build; they say in which split a missing clip is missing.
      folder: an empty folder for the rows of the parts, which stay there.
      log: takes the clips whose audio is not there.

    Raises:
      FormatError: no rows, rows that contradict each other, or not one has its audio.
    """
    spool = folder / "rows"
    ids, sizes = _write_spool(_rows(chosen, root, options), spool)
    part_of, first = _deal(ids, sizes)
    del ids, sizes
    left = np.bincount(part_of[part_of >= 0]) if len(part_of) else np.zeros(0, int)
    waiting = _Waiting(folder)
    contents = [""] * len(left)
    hashed = hashlib.blake2b(digest_size=16)
    absent = 0
    noted_rows = tqdm(
        _read_spool(spool),
        desc="sorting rows into parts",
        unit="row",
        total=len(part_of),
        delay=2.0,
        file=sys.stderr,
    )
    for position, (row, status) in enumerate(noted_rows):
        number = int(part_of[position])
        if number < 0:
            if first[position]:
                missing = Rejected(
                    row.id, "missing", row.problem, row.where, split_of(row, settings)
                )
                log.add(missing, expected=chosen.partial)
                hashed.update(repr(missing).encode("utf-8", "surrogatepass"))
                absent += 1
            continue
        waiting.add(number, (row, status))
        left[number] -= 1
        if not left[number]:
            noted = waiting.take(number)
            rows = list(merge_captions((row for row, _ in noted), str(root)))
            statuses = [status for _, status in noted]
            contents[number] = _digest(map(repr, itertools.chain(rows, statuses)))
            (folder / f"{number:06d}").write_bytes(pickle.dumps(rows))
    spool.unlink()
    if not contents:
        raise FormatError(
            f"{root}: of {absent} rows not one has its audio:\n{log.shown()}\nSay where the"
            " audio lies with --audio-dir"
            if absent
            else f"{root}: no rows"
        )
    parts = [
        Part(f"{n:06d}", chosen.name, root, options, folder / f"{n:06d}", content, listed=True)
        for n, content in enumerate(contents)
    ]
    return Plan(parts, _digest([hashed.hexdigest(), *contents]), absent)


def _rows(chosen: Format, root: Path, options: Options) -> Iterator[Row]:
    assert chosen.rows is not None
    try:
        yield from chosen.rows(root, options)
    except KeyError as error:  # adapters of published tables take their columns for granted
        raise FormatError(
            f"{root}: a table has no column or field {error}, which {chosen.title} has as"
            " published. Is it another version? --format=table reads any table"
        ) from error


def _write_spool(rows: Iterator[Row], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes the rows; returns hashes of their ids uint64 [n] and weights int64 [n].

    A weight is the size of the audio in bytes, 0 for a span of a file, -1 where there is none.
    """
    ids, sizes = array("Q"), array("q")
    with (
        path.open("wb") as file,
        tqdm(desc="reading tables", unit="row", delay=2.0, file=sys.stderr) as bar,
    ):
        while some := list(itertools.islice(rows, _ROWS_AT_A_TIME)):
            noted = [(row, _status(row)) for row in some]
            for row, (size, _) in noted:
                key = hashlib.blake2b(row.id.encode("utf-8", "surrogatepass"), digest_size=8)
                ids.append(int.from_bytes(key.digest(), "little"))
                sizes.append(-1 if row.audio is None else 0 if row.end is not None else size)
            pickle.dump(noted, file)
            bar.update(len(noted))
    return np.array(ids, np.uint64), np.array(sizes, np.int64)


def _status(row: Row) -> tuple[int, int]:
    if not isinstance(row.audio, Path):
        return 0, 0
    try:
        status = row.audio.stat()
    except OSError:  # a link to nowhere; decoding says so
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _read_spool(path: Path) -> Iterator[_Noted]:
    with path.open("rb") as file:
        yield from itertools.chain.from_iterable(_pickled(file))


def _pickled(file: Any) -> Iterator[list[_Noted]]:
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return


def _deal(ids: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of every row, int32 [n], and whether it is the first of its id, bool [n].

    Clips are in the order in which their first rows come; -1 stands for one without audio.
    """
    _, places, clip_of = np.unique(ids, return_index=True, return_inverse=True)
    first = np.zeros(len(ids), bool)
    first[places] = True
    there = np.zeros(len(places), bool)
    there[clip_of[sizes >= 0]] = True
    order = np.argsort(places)
    order = order[there[order]]
    size = np.maximum(sizes[places[order]], 0)
    by_bytes = (np.cumsum(size) - size) // _BYTES_PER_PART
    by_rows = np.arange(len(order)) // max(_ROWS_PER_PART, -(-len(order) // _MOST_PARTS))
    # Either may begin a part, and both together leave no number out.
    begins = np.diff(by_bytes, prepend=0).astype(bool) | np.diff(by_rows, prepend=0).astype(bool)
    part = np.full(len(places), -1, np.int32)
    part[order] = np.cumsum(begins)
    return part[clip_of], first


class _Waiting:
    """Rows of parts that are not complete; many of them wait on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[int, list[_Noted]] = {}
        self._count = 0

    def add(self, number: int, noted: _Noted) -> None:
        self._rows.setdefault(number, []).append(noted)
        self._count += 1
        if self._count > _WAITING:
            for part, rows in self._rows.items():
                with self._file(part).open("ab") as file:
                    pickle.dump(rows, file)
            self._rows.clear()
            self._count = 0

    def take(self, number: int) -> list[_Noted]:
        """All rows of a part, in the order in which they were added."""
        rows = self._rows.pop(number, [])
        self._count -= len(rows)
        path = self._file(number)
        if path.is_file():
            rows = [*_read_spool(path), *rows]
            path.unlink()
        return rows

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.some"


def _digest(content: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for item in content:
        digest.update(item.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
