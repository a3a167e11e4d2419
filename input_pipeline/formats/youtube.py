"""Corpora made of YouTube clips: AudioSet, AudioCaps, VGGSound, MusicCaps, Auto-ACD, AudioSetCaps.

They publish tables alone; the audio is fetched by whoever uses them, so it is incomplete as a
matter of course and its names differ. Every file is taken to be the clip (not the whole video),
named in one of the ways of `clip_stems`, with any suffix, in any folder below the input.

Sources: AudioSet's download page (header lines, columns, splits); AudioCaps' dataset/README.md;
the card of VGGSound at Loie/VGGSound (four columns, no header); the card of google/MusicCaps;
the file list of Loie/Auto-ACD, whose columns `youtube_id,caption` are from memory; AudioSetCaps'
README, columns and three kinds of ids as scripts that read its tables find them. Names of audio
files: Labbeti/aac-datasets (`ID_START.flac`), WavCaps (`YID.wav`), VGGSound's own (`ID_000030`);
the others from memory.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.formats.audio_lookup import AudioFiles
from input_pipeline.formats.own_table import seconds, texts
from input_pipeline.formats.rows import (
    CaptionKind,
    Format,
    FormatError,
    Options,
    Row,
    canonical_split,
)
from input_pipeline.formats.tables import Table, header_of, read_table

_SEGMENTS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
_ID_LENGTH = 11


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


def _clip(
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
    audio = files.with_stem(clip_stems(video, start, end))
    return Row(
        id=video if start is None else f"{video}_{round(start)}",
        audio=audio,
        captions=captions,
        labels=labels,
        split=split,
        source=source,
        group=video[:_ID_LENGTH],
        where=where,
        problem="" if audio else f"no audio of the video {video}",
        caption_kind=kind if captions else "",
    )


def _tables(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Those of the tables that are there, in the folder or one or two below it."""
    found = []
    for name in names:
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            if paths := sorted(root.glob(pattern)):
                found += paths
                break
    return found


def _with_header(root: Path, names: tuple[str, ...], columns: set[str]) -> list[Path]:
    return [path for path in _tables(root, names) if columns <= set(header_of(path))]


# AudioSet -----------------------------------------------------------------------------------------

_AUDIOSET = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "train",
    "eval_segments.csv": "test",
}
_CAPTION_TABLES = ("*AudioSetCaps_caption.csv",)


def audioset_why(root: Path) -> str | None:
    """AudioSet: its tables of segments."""
    found = _tables(root, tuple(_AUDIOSET))
    return f"there is {found[0].name}" if found else None


def audioset_rows(root: Path, options: Options) -> Iterator[Row]:
    """Segments with the names of their labels; captions from a second table where there is one.

    `class_labels_indices.csv` (index, mid, display_name) names the labels. Captions are taken from
    `--captions`, or from AudioSetCaps' table where it lies beside the segments.
    """
    names = _audioset_names(root)
    captions = _captions_by_video(root, options)
    files = AudioFiles(options.audio_dir, root)
    seen: set[str] = set()
    for path in _tables(root, tuple(_AUDIOSET)):
        table = read_table(path, header=_SEGMENTS, comments=True)
        for line, cells in table.rows:
            where = table.where(line)
            video = cells["YTID"]
            start = seconds(cells["start_seconds"], where, "start_seconds")
            end = seconds(cells["end_seconds"], where, "end_seconds")
            mids = [mid for mid in cells["positive_labels"].split(",") if mid]
            if unknown := [mid for mid in mids if mid not in names]:
                raise FormatError(
                    f"{path}: line {line}: the label {unknown[0]!r} is not in"
                    " class_labels_indices.csv"
                )
            row = _clip(
                files,
                where,
                video,
                start,
                end,
                split=_AUDIOSET[path.name],
                captions=captions.get(video, ()),
                labels=tuple(names[mid] for mid in mids),
                kind="generated",
                source="AudioSet",
            )
            if row.id not in seen:
                seen.add(row.id)
                yield row


def _audioset_names(root: Path) -> dict[str, str]:
    found = _tables(root, ("class_labels_indices.csv",))
    if not found:
        raise FormatError(
            f"{root}: class_labels_indices.csv is missing: AudioSet's tables hold only numbers of"
            " labels; fetch it from AudioSet's download page and put it beside them"
        )
    return {cells["mid"]: cells["display_name"] for _, cells in read_table(found[0]).rows}


def _captions_by_video(root: Path, options: Options) -> dict[str, tuple[str, ...]]:
    given = [options.captions] if options.captions else _tables(root, _CAPTION_TABLES)
    captions: dict[str, tuple[str, ...]] = {}
    for path in given:
        table = read_table(path, encoding=options.encoding)
        column = next((name for name in table.columns if name in ("id", "youtube_id", "YTID")), "")
        if not column or "caption" not in table.columns:
            raise FormatError(
                f"{path}: a table of captions needs the columns id (or youtube_id) and caption; it"
                f" has {', '.join(table.columns)}"
            )
        print(f"prepare: captions from {path.name}: {len(table.rows)} rows", flush=True)
        for _, cells in table.rows:
            video = parse_id(cells[column])[0]
            captions[video] = captions.get(video, ()) + texts([cells["caption"]])
    return captions


# AudioCaps ----------------------------------------------------------------------------------------

_AUDIOCAPS = {"train": "train", "train_fixed": "train", "val": "validation", "test": "test"}
_AUDIOCAPS_COLUMNS = {"audiocap_id", "youtube_id", "start_time", "caption"}


def _audiocaps_tables(root: Path) -> list[Path]:
    names = tuple(f"{name}.csv" for name in _AUDIOCAPS)
    found = _with_header(root, names, _AUDIOCAPS_COLUMNS)
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
            yield _clip(
                files,
                where,
                cells["youtube_id"],
                seconds(cells["start_time"], where, "start_time"),
                split=_AUDIOCAPS[path.stem],
                captions=texts([cells["caption"]]),
                kind="human",
                source="AudioCaps",
            )


# VGGSound -----------------------------------------------------------------------------------------


def vggsound_why(root: Path) -> str | None:
    """VGGSound: vggsound.csv, which has no header."""
    return "there is vggsound.csv" if _tables(root, ("vggsound.csv",)) else None


def vggsound_rows(root: Path, options: Options) -> Iterator[Row]:
    """One label a clip; splits train and test."""
    files = AudioFiles(options.audio_dir, root)
    table = read_table(
        _tables(root, ("vggsound.csv",))[0], header=("video", "start", "label", "split")
    )
    for line, cells in table.rows:
        where = table.where(line)
        yield _clip(
            files,
            where,
            cells["video"],
            seconds(cells["start"], where, "start"),
            split=canonical_split(cells["split"]),
            labels=(cells["label"],),
            source="VGGSound",
        )


# MusicCaps ----------------------------------------------------------------------------------------

_MUSICCAPS_COLUMNS = {"ytid", "start_s", "end_s", "aspect_list", "caption"}


def _musiccaps_tables(root: Path) -> list[Path]:
    return _with_header(root, ("*usic*aps*.csv",), _MUSICCAPS_COLUMNS)


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
        yield _clip(
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


def parse_id(name: str) -> tuple[str, float | None, float | None]:
    """Video, start and end of `ID`, `YID`, `ID_000030`, `ID_30`, and `ID_84_10` (start, length)."""
    name = name.strip()
    if len(name) == _ID_LENGTH + 1 and name.startswith("Y"):
        return name[1:], None, None
    match = re.fullmatch(rf"Y?(.{{{_ID_LENGTH}}})_(\d+)(?:_(\d+))?", name)
    if not match:
        return name, None, None
    start = float(match[2])
    return match[1], start, start + float(match[3]) if match[3] else None


def _captioned(
    path: Path, column: str, split: str, files: AudioFiles, source: str
) -> Iterator[Row]:
    table: Table = read_table(path)
    for line, cells in table.rows:
        video, start, end = parse_id(cells[column])
        yield _clip(
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
    found = _with_header(root, ("train.csv", "test.csv"), {"youtube_id", "caption"})
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
    return _with_header(root, ("*AudioSetCaps_caption.csv",), {"id", "caption"})


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
    Format(
        "audioset",
        "AudioSet: segments and labels, captions too where a table has them",
        audioset_why,
        audioset_rows,
        published=True,
        partial=True,
    ),
    Format("audiocaps", "AudioCaps", audiocaps_why, audiocaps_rows, published=True, partial=True),
    Format("vggsound", "VGGSound", vggsound_why, vggsound_rows, published=True, partial=True),
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
