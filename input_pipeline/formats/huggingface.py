"""Folders of Hugging Face `datasets`: parquet (or Arrow) files with the audio's bytes inside.

A column of type `Audio` is stored as a struct of `bytes` (the encoded file) and `path`; the
features, with the names of classes, are JSON in the schema's metadata under `huggingface`. Files
are called `train-00000-of-00002.parquet`; `save_to_disk` writes Arrow streams into a folder for
each split. All from the `datasets` library, from memory; checked against what pyarrow reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.formats.audio_lookup import AudioFiles
from input_pipeline.formats.columns import Columns, choose_columns
from input_pipeline.formats.own_table import seconds, texts
from input_pipeline.formats.rows import (
    Format,
    FormatError,
    Options,
    Row,
    canonical_split,
    split_of_path,
)

_BATCH = 16  # rows in memory at a time


def data_files(root: Path) -> list[Path]:
    """The parquet files of an input, or else its Arrow files; caches of `map` left out."""
    if root.is_file():
        return [root] if root.suffix in (".parquet", ".arrow") else []
    for suffix in ("parquet", "arrow"):
        found = [p for p in root.rglob(f"*.{suffix}") if not p.name.startswith("cache-")]
        if found:
            return sorted(found)
    return []


def recognise(root: Path) -> str | None:
    """Whether there are such files."""
    found = data_files(root)
    return f"there are {len(found)} {found[0].suffix[1:]} files" if found else None


def rows_of(path: Path, root: Path, options: Options) -> Iterator[Row]:
    """Streams the rows of one file, a few at a time.

    Raises:
      FormatError: a damaged file, or no column with audio.
    """
    import pyarrow as pa

    base = root if root.is_dir() else root.parent
    try:
        schema, batches = _open(path)
        audio = _audio_column(path, schema, options)
        others = [name for name in schema.names if name != audio]
        columns = choose_columns(path, others, _without_audio(options), needs_audio=False)
        classes = _class_names(schema)
        files = AudioFiles(options.audio_dir, path.parent, base)
        number = 0
        for batch in batches:
            for cells in batch.to_pylist():
                yield _row(
                    cells,
                    audio,
                    columns,
                    classes,
                    files,
                    f"{path.name} row {number}",
                    path,
                    base,
                    bool(options.start_column or options.end_column),
                )
                number += 1
    except (pa.ArrowException, EOFError, OSError) as error:
        raise FormatError(
            f"{path}: cannot be read ({error}; it has {path.stat().st_size:,} bytes): cut off or"
            " damaged? Download it again"
        ) from error


def _open(path: Path) -> tuple[Any, Iterator[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        return file.schema_arrow, file.iter_batches(batch_size=_BATCH)
    stream = pa.ipc.open_stream(pa.memory_map(str(path)))
    pieces = (
        batch.slice(start, _BATCH) for batch in stream for start in range(0, batch.num_rows, _BATCH)
    )
    return stream.schema, pieces


def _without_audio(options: Options) -> Options:
    return dataclasses.replace(options, audio_column="")


def _audio_column(path: Path, schema: Any, options: Options) -> str:
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if options.audio_column:
        if options.audio_column not in found:
            raise FormatError(
                f"{path}: --audio-column={options.audio_column}: columns that hold audio are"
                f" {', '.join(map(repr, found)) or 'none'}; all: {', '.join(schema.names)}"
            )
        return options.audio_column
    if not found:
        raise FormatError(
            f"{path}: no column holds audio (a struct of bytes and path, or bytes); it has"
            f" {', '.join(schema.names)}"
        )
    return "audio" if "audio" in found else found[0]


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of classes by column, from the features that `datasets` writes into the schema."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:
        return {}
    features = (about.get("info") or {}).get("features") or {}
    found = {}
    for name, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("names"):
            found[name] = [str(item) for item in inner["names"]]
    return found


def _row(
    cells: dict[str, Any],
    audio_column: str,
    columns: Columns,
    classes: dict[str, list[str]],
    files: AudioFiles,
    where: str,
    path: Path,
    base: Path,
    named_span: bool,
) -> Row:
    cell = cells[audio_column]
    stored = cell if isinstance(cell, bytes) or cell is None else cell.get("bytes")
    name = cell.get("path") or "" if isinstance(cell, dict) else ""
    audio: Path | bytes | None = stored if stored else files.find(name)
    labels = cells.get(columns.label)
    if columns.label in classes and labels is not None:
        numbers = labels if isinstance(labels, list) else [labels]
        labels = [classes[columns.label][number] for number in numbers if number >= 0]
    given = cells.get(columns.id)
    # Columns like start_time mostly say where in a longer video the stored clip once was.
    cut = named_span or not stored
    relative = path.relative_to(base).with_suffix("").as_posix()
    return Row(
        id=str(given) if given not in (None, "") else f"{relative}/{where.rsplit(' ', 1)[1]}",
        audio=audio,
        captions=texts([cells.get(column) for column in columns.captions]),
        generated=texts([cells.get(column) for column in columns.generated]),
        labels=texts([labels], separators="" if isinstance(labels, list) else ";,|"),
        split=canonical_split(cells.get(columns.split)) or split_of_path(path, base),
        licence=str(cells.get(columns.licence) or ""),
        source=str(cells.get(columns.source) or ""),
        fold=int(cells.get(columns.fold) or 0),
        start=(seconds(cells.get(columns.start), where, columns.start) or 0.0) if cut else 0.0,
        end=seconds(cells.get(columns.end), where, columns.end) if cut else None,
        where=where,
        problem="" if audio else "neither bytes nor a file",
    )


HUGGINGFACE = Format(
    "huggingface",
    "a folder of Hugging Face datasets: parquet or Arrow files with audio inside",
    recognise,
    files=data_files,
    rows_of=rows_of,
)
