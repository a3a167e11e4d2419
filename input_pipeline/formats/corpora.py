"""Corpora that come with their audio: Clotho, WavCaps, FSD50K, ESC-50, UrbanSound8K, MACS.

Sources: Labbeti/aac-datasets (Clotho, WavCaps, MACS: names of files, folders and fields);
soundata/soundata (FSD50K, ESC-50, UrbanSound8K: the same, and the licences). The folders that
Clotho's archives unpack to beyond the split's name are from memory, and so is WavCaps' clip folder
below the source's name; both are found wherever they lie below the input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.formats.audio_lookup import AudioFiles, stem_of
from input_pipeline.formats.own_table import texts
from input_pipeline.formats.rows import Format, FormatError, Options, Row, canonical_split
from input_pipeline.formats.tables import Table, read_table, read_text


def _find(root: Path, *names: str) -> Path | None:
    """The first of some files that lies in the folder or one or two below it."""
    for name in names:
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            if found := sorted(root.glob(pattern)):
                return found[0]
    return None


def _needed(root: Path, name: str) -> Path:
    path = _find(root, name)
    if path is None:
        raise FormatError(f"{root}: {name} is missing")
    return path


def _why(*names: str) -> Any:
    def recognise(root: Path) -> str | None:
        found = _find(root, *names)
        return f"there is {found.name}" if found else None

    return recognise


# Clotho -------------------------------------------------------------------------------------------

_CLOTHO = {"development": "train", "validation": "validation", "evaluation": "test"}


def _clotho_key(name: str) -> str:
    """Tables and archives write colons and outer spaces of some names differently."""
    return re.sub(r"\s*:\s*", "_", name.strip())


def clotho_rows(root: Path, options: Options) -> Iterator[Row]:
    """Five captions a clip; keywords as labels and the licence from the table of metadata."""
    files = AudioFiles(options.audio_dir, root)
    for subset, split in _CLOTHO.items():
        path = _find(root, f"clotho_captions_{subset}.csv")
        if path is None:
            continue
        table = read_table(path)
        numbered = [name for name in table.columns if re.fullmatch(r"caption_\d+", name)]
        about = _clotho_metadata(root, subset)
        for line, cells in table.rows:
            name = cells["file_name"]
            audio = files.find(name, within=subset) or files.find(_clotho_key(name), within=subset)
            extra = about.get(_clotho_key(name), {})
            yield Row(
                id=f"{subset}/{name.strip()}",
                audio=audio,
                captions=texts([cells[column] for column in numbered]),
                labels=texts([extra.get("keywords")], separators=";"),
                split=split,
                licence=extra.get("license", ""),
                source="Clotho",
                where=table.where(line),
                problem="" if audio else f"no file {name!r} in a folder {subset}",
                caption_kind="human",
            )


def _clotho_metadata(root: Path, subset: str) -> dict[str, dict[str, str]]:
    path = _find(root, f"clotho_metadata_{subset}.csv")
    if path is None:
        return {}
    try:
        table = read_table(path)
    except FormatError:  # published in ISO-8859-1
        table = read_table(path, encoding="iso-8859-1")
    return {_clotho_key(cells["file_name"]): cells for _, cells in table.rows}


# WavCaps ------------------------------------------------------------------------------------------

_WAVCAPS = {
    "as_final.json": "AudioSet_SL",
    "bbc_final.json": "BBC_Sound_Effects",
    "fsd_final.json": "FreeSound",
    "sb_final.json": "SoundBible",
}


def wavcaps_rows(root: Path, options: Options) -> Iterator[Row]:
    """One generated caption a clip, all for training; `SOURCE/ID.flac`."""
    files = AudioFiles(options.audio_dir, root)
    for name, source in _WAVCAPS.items():
        path = _find(root, name)
        if path is None:
            continue
        table: Table = read_table(path)
        for number, cells in table.rows:
            if "id" not in cells or "caption" not in cells:
                raise FormatError(
                    f"{path}: entry {number} has no 'id' and 'caption': {cells!r:.80}"
                )
            clip = stem_of(str(cells["id"]))
            audio = files.find(clip, within=source)
            yield Row(
                id=f"{source}/{clip}",
                audio=audio,
                captions=texts([cells["caption"]]),
                labels=texts([cells.get("tags")]),
                split="train",
                source=source,
                where=f"{name} entry {number}",
                problem="" if audio else f"no file {clip}.flac in a folder {source}",
                caption_kind="generated",
            )


# FSD50K -------------------------------------------------------------------------------------------


def fsd50k_rows(root: Path, options: Options) -> Iterator[Row]:
    """Labels as published (`Car_passing_by`); splits train, validation (both from dev) and test."""
    files = AudioFiles(options.audio_dir, root)
    for subset in ("dev", "eval"):
        path = _find(root, f"FSD50K.ground_truth/{subset}.csv")
        if path is None:
            continue
        table = read_table(path)
        info = _find(root, f"{subset}_clips_info_FSD50K.json")
        about = json.loads(read_text(info)) if info else {}
        for line, cells in table.rows:
            name = cells["fname"]
            audio = files.find(name, within=f"FSD50K.{subset}_audio")
            yield Row(
                id=name,
                audio=audio,
                labels=texts([cells["labels"]], separators=","),
                split=canonical_split(cells.get("split") or "test"),
                licence=str((about.get(name) or {}).get("license", "")),
                source="FSD50K",
                where=table.where(line),
                problem="" if audio else f"no file {name}.wav in FSD50K.{subset}_audio",
            )


# ESC-50 and UrbanSound8K --------------------------------------------------------------------------


def esc50_rows(root: Path, options: Options) -> Iterator[Row]:
    """One label a clip; five folds and no split: all of it is `test`, with the fold's number."""
    table = read_table(_needed(root, "esc50.csv"))
    files = AudioFiles(options.audio_dir, root)
    for line, cells in table.rows:
        name = cells["filename"]
        audio = files.find(name)
        yield Row(
            id=stem_of(name),
            audio=audio,
            labels=(cells["category"],),
            split="test",
            licence="CC BY" if cells.get("esc10") == "True" else "CC BY-NC",
            source="ESC-50",
            fold=int(cells["fold"]),
            group=cells.get("src_file", ""),
            where=table.where(line),
            problem="" if audio else files.why_missing(name),
        )


def urbansound8k_rows(root: Path, options: Options) -> Iterator[Row]:
    """One label a clip; ten folds and no split: all of it is `test`, with the fold's number.

    The table's start and end are places in the recording that the clip was cut from.
    """
    table = read_table(_needed(root, "UrbanSound8K.csv"))
    files = AudioFiles(options.audio_dir, root)
    for line, cells in table.rows:
        name, fold = cells["slice_file_name"], cells["fold"]
        audio = files.find(name, within=f"fold{fold}")
        yield Row(
            id=stem_of(name),
            audio=audio,
            labels=(cells["class"],),
            split="test",
            licence="CC BY-NC 3.0",
            source="UrbanSound8K",
            fold=int(fold),
            group=cells["fsID"],
            where=table.where(line),
            problem="" if audio else f"no file {name} in fold{fold}",
        )


# MACS ---------------------------------------------------------------------------------------------


def macs_rows(root: Path, options: Options) -> Iterator[Row]:
    """Two to five captions a clip, all for training; audio of TAU Urban Acoustic Scenes 2019."""
    import yaml

    path = _needed(root, "MACS.yaml")
    try:
        content = yaml.load(read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        entries = content["files"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: no YAML with a list 'files' ({error}): cut off?") from error
    files = AudioFiles(options.audio_dir, root)
    for number, entry in enumerate(entries, 1):
        name, annotations = entry["filename"], entry["annotations"]
        audio = files.find(name)
        yield Row(
            id=stem_of(name),
            audio=audio,
            captions=texts([note["sentence"] for note in annotations]),
            labels=tuple(dict.fromkeys(tag for note in annotations for tag in note["tags"] or ())),
            split="train",
            source="MACS",
            where=f"MACS.yaml entry {number}",
            problem="" if audio else files.why_missing(name),
            caption_kind="human",
        )


FORMATS = (
    Format(
        "clotho",
        "Clotho",
        _why(*(f"clotho_captions_{subset}.csv" for subset in _CLOTHO)),
        clotho_rows,
        published=True,
    ),
    Format("wavcaps", "WavCaps", _why(*_WAVCAPS), wavcaps_rows, published=True, partial=True),
    Format(
        "fsd50k",
        "FSD50K",
        _why("FSD50K.ground_truth/dev.csv", "FSD50K.ground_truth/eval.csv"),
        fsd50k_rows,
        published=True,
    ),
    Format("esc50", "ESC-50", _why("esc50.csv"), esc50_rows, published=True),
    Format(
        "urbansound8k", "UrbanSound8K", _why("UrbanSound8K.csv"), urbansound8k_rows, published=True
    ),
    Format("macs", "MACS", _why("MACS.yaml"), macs_rows, published=True),
)
