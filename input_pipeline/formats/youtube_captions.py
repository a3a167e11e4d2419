"""Captioned YouTube clips: AudioCaps, MusicCaps, Auto-ACD, AudioSetCaps.

Sources: AudioCaps' dataset/README.md (columns, splits; 1.0 and 2.0) and Labbeti/aac-datasets
(`train_fixed.csv`); the card of google/MusicCaps; the file list of Loie/Auto-ACD, whose columns
`youtube_id,caption` and ids with a start are from memory; AudioSetCaps' README, its columns and
three kinds of ids as scripts that read its tables find them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.formats.audio_lookup import AudioFiles
from input_pipeline.formats.own_table import seconds, texts
from input_pipeline.formats.rows import Format, FormatError, Options, Row, canonical_split
from input_pipeline.formats.tables import header_of, read_table
from input_pipeline.formats.youtube import clip_row, parse_id, tables_with_header

# AudioCaps ----------------------------------------------------------------------------------------

_AUDIOCAPS = {"train": "train", "train_fixed": "train", "val": "validation", "test": "test"}
_AUDIOCAPS_COLUMNS = {"audiocap_id", "youtube_id", "start_time", "caption"}


def _audiocaps_tables(root: Path) -> list[Path]:
    names = tuple(f"{name}.csv" for name in _AUDIOCAPS)
    found = tables_with_header(root, names, _AUDIOCAPS_COLUMNS)
    if any(path.stem == "train_fixed" for path in found):
        found = [path for path in found if path.stem != "train"]
    return found


def audiocaps_why(root: Path) -> str | None:
    """AudioCaps: train.csv, val.csv, test.csv with its columns (1.0 and 2.0)."""
    found = _audiocaps_tables(root)
    return f"{found[0].name} has the columns of AudioCaps" if found else None


def audiocaps_rows(root: Path, options: Options) -> Iterator[Row]:
    """One row a clip; validation and test clips have five captions, one in each line."""
    files = AudioFiles(options.audio_dir, root)
    for path in _audiocaps_tables(root):
        table = read_table(path)
        for line, cells in table.rows:
            where = table.where(line)
            yield clip_row(
                files,
                where,
                cells["youtube_id"],
                seconds(cells["start_time"], where, "start_time"),
                split=_AUDIOCAPS[path.stem],
                captions=texts([cells["caption"]]),
                kind="human",
                source="AudioCaps",
            )


# MusicCaps ----------------------------------------------------------------------------------------

_MUSICCAPS_COLUMNS = {"ytid", "start_s", "end_s", "aspect_list", "caption"}


def _musiccaps_tables(root: Path) -> list[Path]:
    return tables_with_header(root, ("*usic*aps*.csv",), _MUSICCAPS_COLUMNS)


def musiccaps_why(root: Path) -> str | None:
    """MusicCaps: musiccaps-public.csv."""
    found = _musiccaps_tables(root)
    return f"{found[0].name} has the columns of MusicCaps" if found else None


def musiccaps_rows(root: Path, options: Options) -> Iterator[Row]:
    """One caption a clip; labels are the aspects; what lies in AudioSet's evaluation is test."""
    files = AudioFiles(options.audio_dir, root)
    table = read_table(_musiccaps_tables(root)[0])
    for line, cells in table.rows:
        where = table.where(line)
        held_out = str(cells.get("is_audioset_eval", "")).strip().lower() == "true"
        yield clip_row(
            files,
            where,
            cells["ytid"],
            seconds(cells["start_s"], where, "start_s"),
            seconds(cells["end_s"], where, "end_s"),
            split="test" if held_out else "train",
            captions=texts([cells["caption"]]),
            labels=_aspects(cells["aspect_list"], where),
            kind="human",
            source="MusicCaps",
        )


def _aspects(cell: str, where: str) -> tuple[str, ...]:
    try:
        aspects = ast.literal_eval(cell or "[]")
    except (ValueError, SyntaxError) as error:
        raise FormatError(f"{where}: aspect_list is no list: {cell!r:.80}") from error
    return tuple(str(aspect) for aspect in aspects)


# Auto-ACD and AudioSetCaps ------------------------------------------------------------------------


def _captioned(
    path: Path, column: str, split: str, files: AudioFiles, source: str
) -> Iterator[Row]:
    table = read_table(path)
    for line, cells in table.rows:
        video, start, end = parse_id(cells[column])
        yield clip_row(
            files,
            table.where(line),
            video,
            start,
            end,
            split=split,
            captions=texts([cells["caption"]]),
            kind="generated",
            source=source,
        )


def _auto_acd_tables(root: Path) -> list[Path]:
    found = tables_with_header(root, ("train.csv", "test.csv"), {"youtube_id", "caption"})
    return [path for path in found if "audiocap_id" not in header_of(path)]


def auto_acd_why(root: Path) -> str | None:
    """Auto-ACD: train.csv and test.csv of youtube_id and caption."""
    found = _auto_acd_tables(root)
    return f"{found[0].name} has the columns youtube_id and caption" if found else None


def auto_acd_rows(root: Path, options: Options) -> Iterator[Row]:
    """One generated caption a clip; splits train and test."""
    files = AudioFiles(options.audio_dir, root)
    for path in _auto_acd_tables(root):
        yield from _captioned(path, "youtube_id", canonical_split(path.stem), files, "Auto-ACD")


def _audiosetcaps_tables(root: Path) -> list[Path]:
    return tables_with_header(root, ("*AudioSetCaps_caption.csv",), {"id", "caption"})


def audiosetcaps_why(root: Path) -> str | None:
    """AudioSetCaps: the tables that end in AudioSetCaps_caption.csv."""
    found = _audiosetcaps_tables(root)
    return f"there is {found[0].name}" if found else None


def audiosetcaps_rows(root: Path, options: Options) -> Iterator[Row]:
    """One generated caption a clip, all for training.

    AudioCaps' and VGGSound's evaluation clips are among them (its README warns of that).
    """
    files = AudioFiles(options.audio_dir, root)
    for path in _audiosetcaps_tables(root):
        yield from _captioned(path, "id", "train", files, _audiosetcaps_source(path))


def _audiosetcaps_source(path: Path) -> str:
    return path.name.partition("_AudioSetCaps")[0] if "_AudioSetCaps" in path.name else "AudioSet"


FORMATS = (
    Format("audiocaps", "AudioCaps", audiocaps_why, audiocaps_rows, published=True, partial=True),
    Format("musiccaps", "MusicCaps", musiccaps_why, musiccaps_rows, published=True, partial=True),
    Format(
        "audiosetcaps",
        "AudioSetCaps",
        audiosetcaps_why,
        audiosetcaps_rows,
        published=True,
        partial=True,
    ),
    Format("auto_acd", "Auto-ACD", auto_acd_why, auto_acd_rows, published=True, partial=True),
)
