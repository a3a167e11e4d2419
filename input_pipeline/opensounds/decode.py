"""Decodes the recordings of a tier once, over worker processes, into one scratch file of int16 PCM.

Processes and not threads: libsndfile calls back into Python to read ogg from memory, so threads do
not overlap. The parent reads the archives front to back and hands batches of encoded files to the
workers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from input_pipeline import audio_files
from input_pipeline.opensounds import archives, licences, notes, soundfont
from input_pipeline.opensounds.index import Row
from input_pipeline.pool import mapped

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Clip:
    """Where one decoded recording lies in the scratch file (both in samples)."""

    start: int
    length: int


@dataclasses.dataclass
class Decoded:
    """What came out of the packages.

    Attributes:
      pcm_file: scratch file, int16 PCM at 16 kHz, one clip behind the other.
      clips: (package, path) -> place in the file.
      skipped: (package, path, reason, detail) of everything in the index that gave no clip.
      damaged: package name -> what is wrong with its archive.
      licences: package name -> licence.
      seconds: wall time taken.
    """

    pcm_file: Path
    clips: dict[tuple[str, str], Clip] = dataclasses.field(default_factory=dict)
    skipped: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    licences: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


Job = tuple[str, str, bytes]
Result = tuple[str, str, bytes, str, str]
Work = Callable[[], list[Result]]


def _finish(package: str, path: str, audio: np.ndarray) -> Result:
    if audio_files.is_silent(audio):
        return package, path, b"", "silent", "never rises above -72 dB"
    return package, path, audio_files.to_int16(audio).tobytes(), "", ""


def _decode_files(jobs: list[Job]) -> list[Result]:
    results = []
    for package, path, data in jobs:
        try:
            results.append(_finish(package, path, audio_files.read_audio(data, name=path)))
        except audio_files.AudioError as error:
            results.append((package, path, b"", error.reason, error.detail))
    return results


def _render_notes(package: str, archive: Path, paths: list[str]) -> list[Result]:
    try:
        font = soundfont.load(archive, paths[0].partition("#")[0])
    except (soundfont.SoundFontError, archives.ArchiveError) as error:
        return [(package, path, b"", "unreadable", str(error)) for path in paths]
    return [_finish(package, path, notes.render(font, notes.parse_note(path))) for path in paths]


def _batches(package: str, archive: Path, rows: list[Row], decoded: Decoded) -> Iterator[Work]:
    """Work items of one package; a damaged archive ends them and is remembered."""
    note_paths = sorted({row.path for row in rows if row.is_note})
    for start in range(0, len(note_paths), _BATCH):
        yield functools.partial(_render_notes, package, archive, note_paths[start : start + _BATCH])
    jobs: list[Job] = []
    text = member = ""
    try:
        member = licences.licence_member(package, archive)
        wanted = {row.path for row in rows if not row.is_note} | {member}
        for path, data in archives.read_members(archive, wanted):
            if path == member:
                text = data.decode("utf-8", "replace")
                continue
            jobs.append((package, path, data))
            if len(jobs) == _BATCH:
                yield functools.partial(_decode_files, jobs)
                jobs = []
    except archives.ArchiveError as error:
        decoded.damaged[package] = str(error)
    if jobs:
        yield functools.partial(_decode_files, jobs)
    decoded.licences[package] = licences.describe(package, member, text)


def _do(item: Work) -> list[Result]:
    return item()


def decode(
    rows: Iterable[Row], located: dict[str, Path], pcm_file: Path, *, workers: int = 2
) -> Decoded:
    """Decodes every recording of ``rows`` whose package is in ``located``.

    Args:
      rows: index rows; rows of one file share one clip.
      located: package name -> archive.
      pcm_file: scratch file to write.
      workers: worker processes; 0 decodes in this process.
    """
    begin = time.perf_counter()
    decoded = Decoded(pcm_file)
    by_package: dict[str, list[Row]] = {}
    for row in rows:
        if row.package in located:
            by_package.setdefault(row.package, []).append(row)
    wanted = {(row.package, row.path) for rows in by_package.values() for row in rows}
    work = itertools.chain.from_iterable(
        _batches(package, located[package], package_rows, decoded)
        for package, package_rows in by_package.items()
    )
    position = 0
    skipped: dict[tuple[str, str], tuple[str, str]] = {}
    with (
        pcm_file.open("wb") as out,
        tqdm(total=len(wanted), desc="decoding", unit="clip", disable=None) as progress,
    ):
        for results in mapped(_do, work, workers, ahead=4):
            for package, path, pcm, reason, detail in results:
                if reason:
                    skipped[package, path] = (reason, detail)
                else:
                    out.write(pcm)
                    decoded.clips[package, path] = Clip(position, len(pcm) // 2)
                    position += len(pcm) // 2
            progress.update(len(results))
    for package, path in sorted(wanted - decoded.clips.keys()):
        gone = (
            ("damaged", "behind the damage")
            if package in decoded.damaged
            else ("gone", "not in this version")
        )
        decoded.skipped.append((package, path, *skipped.get((package, path), gone)))
    decoded.seconds = time.perf_counter() - begin
    return decoded
