"""Webdataset tars: `KEY.flac` beside `KEY.json` (or `.txt`, `.cls`), the layout of LAION-Audio.

The JSON's `text` is a caption or a list of them, `tag` a list of labels, `original_data` may hold
`license`: LAION-AI/audio-dataset, data_preprocess/README.md. Their tars lie in train/, valid/ and
test/, and every tar counts its keys from 1, so the tar's path is part of the id. That `.txt` holds
a caption and `.cls` a label is the webdataset library's convention (from memory).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.audio_files import AUDIO_SUFFIXES
from input_pipeline.formats.own_table import texts
from input_pipeline.formats.rows import Format, FormatError, Options, Row, split_of_path

_TAR = re.compile(r"\.tar(\.gz|\.bz2|\.xz)?$|\.tgz$")
_CAPTIONS = ("text", "caption", "captions", "texts", "description")
_GENERATED = ("text_augment_t5", "text_augment_all")  # LAION-Audio's keywords made to sentences
_LABELS = ("tag", "tags", "labels", "label", "class")
_END = bytes(1024)  # what every whole tar ends with: two empty blocks


def tars(root: Path) -> list[Path]:
    """The tars of an input: itself, or those below the folder."""
    if root.is_file():
        return [root] if _TAR.search(root.name) else []
    return sorted(path for path in root.rglob("*.t*") if _TAR.search(path.name) and path.is_file())


def recognise(root: Path) -> str | None:
    """Whether there are tars."""
    found = tars(root)
    return f"there are {len(found)} tars, the first {found[0].name}" if found else None


def rows_of(path: Path, root: Path, options: Options) -> Iterator[Row]:
    """Streams the clips of one tar; one clip is in memory at a time.

    Members of one key must follow each other, as webdataset wants it.

    Raises:
      FormatError: the tar is cut off or damaged, a key returns, or JSON that is none.
    """
    base = root if root.is_dir() else root.parent
    name = _TAR.sub("", path.relative_to(base).as_posix())
    split = split_of_path(path, base)
    seen: set[str] = set()
    for key, members in _groups(path, seen):
        row = _row(path, f"{name}/{key}", members, options)
        if row is not None:
            yield Row(**{**row, "split": split, "where": f"{path.name}: {key}"})


def _groups(path: Path, seen: set[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    key = ""
    members: dict[str, bytes] = {}
    for name, data in _members(path):
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        this = f"{folder}/{stem}" if folder else stem
        this = this.removeprefix("./")
        if this != key:
            if members:
                yield key, members
            if this in seen:
                raise FormatError(
                    f"{path}: the key {this!r} comes twice: two clips have one id, or the files of"
                    " one clip do not follow each other (write the tar sorted by name)"
                )
            seen.add(this)
            key, members = this, {}
        if suffix.lower() in members:
            raise FormatError(f"{path}: {name!r} is in it twice: two clips have one id")
        members[suffix.lower()] = data
    if members:
        yield key, members


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    whole, last = 0, ""
    compressed = not path.name.endswith(".tar")
    try:
        if not compressed:
            _check_end(path)
        # A stream reads front to back: no index of the tar in memory.
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    data = file.read()
                    if len(data) != member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name, data
                    whole, last = whole + 1, member.name
                tar.members = []  # type: ignore[attr-defined]  # it would remember every member
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        after = f" after {whole} whole files, the last {last!r}" if whole else ""
        raise FormatError(
            f"{path}: the tar is cut off or damaged{after} ({error}; it has"
            f" {path.stat().st_size:,} bytes). Download it again, or move it away to go on without"
        ) from error


def _check_end(path: Path) -> None:
    """A tar cut between two files reads without an error; only its end tells."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(_END)))
        if size < len(_END) or file.read() != _END:
            raise tarfile.ReadError("its end is missing")


def _row(
    path: Path, clip_id: str, members: dict[str, bytes], options: Options
) -> dict[str, Any] | None:
    audio = next((data for suffix, data in members.items() if f".{suffix}" in AUDIO_SUFFIXES), None)
    about: dict[str, Any] = {}
    if "json" in members:
        try:
            about = json.loads(members["json"])
        except ValueError as error:
            raise FormatError(f"{path}: {clip_id}.json is not JSON: {error}") from error
        if not isinstance(about, dict):
            raise FormatError(f"{path}: {clip_id}.json holds no object: {about!r:.80}")
    keys = options.caption_columns or _CAPTIONS
    if options.caption_columns and about and not any(name in about for name in keys):
        raise FormatError(
            f"{path}: {clip_id}.json has no {' or '.join(map(repr, keys))} (--caption-column); it"
            f" has {', '.join(map(repr, about))}"
        )
    captions = next((texts([about[name]]) for name in keys if about.get(name)), ())
    if not captions:
        captions = texts([members[s].decode("utf-8", "replace") for s in ("txt",) if s in members])
    if audio is None and not about and not captions:
        return None  # a readme, a list of sizes
    written = options.generated_columns or _GENERATED
    generated = next((texts([about[name]]) for name in written if about.get(name)), ())
    original = about.get("original_data")
    original = original if isinstance(original, dict) else {}
    label_keys = (options.label_column,) if options.label_column else _LABELS
    labels = next((texts([about[name]]) for name in label_keys if about.get(name)), ())
    if not labels:
        labels = texts([members[s].decode("utf-8", "replace") for s in ("cls",) if s in members])
    return {
        "id": clip_id,
        "audio": audio,
        "captions": captions,
        "generated": generated,
        "labels": labels,
        "licence": str(about.get("license") or original.get("license") or ""),
        "source": str(about.get("source") or original.get("title") or ""),
        "problem": "" if audio is not None else f"no audio beside {', '.join(members)}",
    }


WEBDATASET = Format(
    "webdataset",
    "tars of audio and JSON with one name (LAION-Audio)",
    recognise,
    files=tars,
    rows_of=rows_of,
)
