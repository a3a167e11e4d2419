"""Layouts that `alm prepare --input` reads, each an adapter from files to rows."""

from __future__ import annotations

from pathlib import Path

from alm_jax.errors import did_you_mean
from input_pipeline.audio_files import find_audio_files
from input_pipeline.formats import corpora, scenes, youtube_captions, youtube_labels
from input_pipeline.formats.huggingface import HUGGINGFACE
from input_pipeline.formats.own_table import AUDIO, TABLE
from input_pipeline.formats.rows import Format, FormatError, Options, Row
from input_pipeline.formats.webdataset import WEBDATASET

__all__ = ["FORMATS", "Format", "FormatError", "Options", "Row", "choose_format"]

# The order in which they are tried: the particular before the general.
FORMATS: dict[str, Format] = {
    layout.name: layout
    for layout in (
        *(*corpora.FORMATS, *youtube_labels.FORMATS, *youtube_captions.FORMATS, *scenes.FORMATS),
        *(WEBDATASET, HUGGINGFACE, TABLE, AUDIO),
    )
}


def choose_format(root: Path, name: str = "") -> tuple[Format, str]:
    """The layout of an input, and why.

    Args:
      root: a folder, or a table, tar or parquet file.
      name: what the person says; "" guesses.

    Raises:
      FormatError: no such input or layout, or nothing known is in it.
    """
    if not root.exists():
        raise FormatError(f"--input={root}: no such file or folder")
    if name:
        if name not in FORMATS:
            raise FormatError(
                f"--format={name}: no such layout{did_you_mean(name, FORMATS)} (layouts:"
                f" {', '.join(FORMATS)})"
            )
        layout = FORMATS[name]
        if layout.published and (not root.is_dir() or layout.recognise(root) is None):
            raise FormatError(
                f"--input={root}: the tables of {layout.title} are not there (docs/data.md lists"
                f" what --format={name} looks for); give the folder that holds them"
            )
        return layout, "--format says so"
    for layout in FORMATS.values():
        if (root.is_dir() or not layout.published) and (why := layout.recognise(root)):
            return layout, why
    audio = sum(1 for _ in find_audio_files(root)) if root.is_dir() else 0
    found = f"{audio} audio files but no table with captions" if audio else "nothing known"
    raise FormatError(
        f"--input={root}: found {found}. Needed is a CSV, TSV or JSONL table with a column of file"
        " names and one of captions, tars (webdataset), parquet files, or a published layout"
        f" ({', '.join(name for name, f in FORMATS.items() if f.published)})"
        + ("; --format=audio takes audio without captions" if audio else "")
    )
