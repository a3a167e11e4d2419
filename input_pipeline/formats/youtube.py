"""What corpora of YouTube clips share: how people name the files, and how tables name the clips.

Such corpora publish tables alone; the audio is fetched by whoever uses them, so it is incomplete as
a matter of course and its names differ. Every file is taken to be the clip (not the whole video),
named in one of the ways of `clip_stems`, with any suffix, in any folder below the input.

Sources of the names: Labbeti/aac-datasets (`ID_START.flac`), WavCaps (`YID.wav`), VGGSound's own
(`ID_000030`), AudioSetCaps (`ID_84_10`, start and length); the others from memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.formats.audio_lookup import VIDEO_ID, AudioFiles
from input_pipeline.formats.rows import CaptionKind, Row
from input_pipeline.formats.tables import header_of


def clip_stems(video: str, start: float | None = None, end: float | None = None) -> Iterator[str]:
    """The names that people give a clip: `ID_30`, `ID_000030`, `ID_30_40`, `YID_30`, `ID`, ..."""
    for prefix in ("", "Y"):
        name = prefix + video
        if start is not None:
            whole = round(start)
            yield f"{name}_{whole}"
            yield f"{name}_{whole:06d}"
            stop = round(end) if end is not None else whole + 10
            yield f"{name}_{whole}_{stop}"
            yield f"{name}_{whole}_{stop - whole}"
            yield f"{name}_{whole}-{stop}"
            yield f"{name}_{whole * 1000}"
            yield f"{name}_{whole * 1000}_{stop * 1000}"
            yield f"{name}_{start:.3f}"
            yield f"{name}_{start:.3f}_{start + (stop - whole):.3f}"
        yield name


def clip_row(
    files: AudioFiles,
    where: str,
    video: str,
    start: float | None,
    end: float | None = None,
    *,
    split: str = "",
    captions: tuple[str, ...] = (),
    labels: tuple[str, ...] = (),
    kind: CaptionKind = "",
    source: str,
) -> Row:
    """The row of one clip; its id is the video's with the start in whole seconds."""
    audio = files.with_stem(clip_stems(video, start, end))
    if audio is None and start is None:
        audio = files.starting_with(video)
    return Row(
        id=video if start is None else f"{video}_{round(start)}",
        audio=audio,
        captions=captions,
        labels=labels,
        split=split,
        source=source,
        group=video[:VIDEO_ID],
        where=where,
        problem="" if audio else f"no audio of the video {video}",
        caption_kind=kind if captions else "",
    )


def find_tables(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Those of the tables that are there, in the folder or one or two below it."""
    found = []
    for name in names:
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            if paths := sorted(root.glob(pattern)):
                found += paths
                break
    return found


def tables_with_header(root: Path, names: tuple[str, ...], columns: set[str]) -> list[Path]:
    """Those of them that have these columns."""
    return [path for path in find_tables(root, names) if columns <= set(header_of(path))]


def parse_id(name: str) -> tuple[str, float | None, float | None]:
    """Video, start and end of `ID`, `YID`, `ID_000030`, `ID_30`, and `ID_84_10` (start, length)."""
    name = name.strip()
    if len(name) == VIDEO_ID + 1 and name.startswith("Y"):
        return name[1:], None, None
    match = re.fullmatch(rf"Y?(.{{{VIDEO_ID}}})_(\d+)(?:_(\d+))?", name)
    if not match:
        return name, None, None
    start = float(match[2])
    return match[1], start, start + float(match[3]) if match[3] else None
