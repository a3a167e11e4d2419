"""Labelled YouTube clips: AudioSet (with captions where a table has them) and VGGSound.

Sources: AudioSet's download page (header lines, columns, splits), `class_labels_indices.csv` as
AudioSet publishes it; the card of VGGSound at Loie/VGGSound (four columns, no header).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from input_pipeline.formats.audio_lookup import AudioFiles
from input_pipeline.formats.own_table import seconds, texts
from input_pipeline.formats.rows import Format, FormatError, Options, Row, canonical_split
from input_pipeline.formats.tables import read_table
from input_pipeline.formats.youtube import clip_row, find_tables, parse_id

_SEGMENTS = ("YTID", "start_seconds", "end_seconds", "positive_labels")

# AudioSet -----------------------------------------------------------------------------------------

_AUDIOSET = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "train",
    "eval_segments.csv": "test",
}
_CAPTION_TABLES = ("*AudioSetCaps_caption.csv",)


def audioset_why(root: Path) -> str | None:
    """AudioSet: its tables of segments."""
    found = find_tables(root, tuple(_AUDIOSET))
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
    for path in find_tables(root, tuple(_AUDIOSET)):
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
            row = clip_row(
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
    found = find_tables(root, ("class_labels_indices.csv",))
    if not found:
        raise FormatError(
            f"{root}: class_labels_indices.csv is missing: AudioSet's tables hold only numbers of"
            " labels; fetch it from AudioSet's download page and put it beside them"
        )
    return {cells["mid"]: cells["display_name"] for _, cells in read_table(found[0]).rows}


def _captions_by_video(root: Path, options: Options) -> dict[str, tuple[str, ...]]:
    given = [options.captions] if options.captions else find_tables(root, _CAPTION_TABLES)
    captions: dict[str, tuple[str, ...]] = {}
    for path in given:
        table = read_table(path, encoding=options.encoding)
        column = next((name for name in table.columns if name in ("id", "youtube_id", "YTID")), "")
        if not column or "caption" not in table.columns:
            raise FormatError(
                f"{path}: a table of captions needs the columns id (or youtube_id) and caption; it"
                f" has {', '.join(table.columns)}"
            )
        print(f"prepare: captions from {path.name}", flush=True)
        for _, cells in table.rows:
            video = parse_id(cells[column])[0]
            captions[video] = captions.get(video, ()) + texts([cells["caption"]])
    return captions


# VGGSound -----------------------------------------------------------------------------------------


def vggsound_why(root: Path) -> str | None:
    """VGGSound: vggsound.csv, which has no header."""
    return "there is vggsound.csv" if find_tables(root, ("vggsound.csv",)) else None


def vggsound_rows(root: Path, options: Options) -> Iterator[Row]:
    """One label a clip; splits train and test."""
    files = AudioFiles(options.audio_dir, root)
    table = read_table(
        find_tables(root, ("vggsound.csv",))[0], header=("video", "start", "label", "split")
    )
    for line, cells in table.rows:
        where = table.where(line)
        yield clip_row(
            files,
            where,
            cells["video"],
            seconds(cells["start"], where, "start"),
            split=canonical_split(cells["split"]),
            labels=(cells["label"],),
            source="VGGSound",
        )


FORMATS = (
    Format(
        "audioset",
        "AudioSet: segments and labels, captions too where a table has them",
        audioset_why,
        audioset_rows,
        published=True,
        partial=True,
    ),
    Format("vggsound", "VGGSound", vggsound_why, vggsound_rows, published=True, partial=True),
)
