"""Which column of a table is which, by name; the person's word counts first."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from alm_jax.errors import did_you_mean
from input_pipeline.formats.rows import FormatError, Options

# Names as people write them, without case and separators, best first.
_AUDIO = (
    *("audio", "audiofilepath", "audiopath", "audiofile", "audiofilename", "filepath", "filename"),
    *("file", "fname", "path", "wav", "wavpath", "wavfile", "soundfile", "sound", "clip"),
    *("recording", "location"),
)
_CAPTION = (
    *("caption", "captions", "text", "texts", "description", "sentence", "rawtext"),
    *("transcript", "transcription"),
)
_ID = ("id", "clipid", "audioid", "uid", "key", "sampleid")
_SPLIT = ("split", "subset", "partition", "set")
_LABEL = (
    "labels",
    "label",
    "tags",
    "tag",
    "categories",
    "category",
    "classes",
    "class",
    "keywords",
)
_LICENCE = ("licence", "license")
_SOURCE = ("source", "dataset")
_START = ("start", "startseconds", "starttime", "starts", "startsec", "onset", "begin", "offset")
_END = ("end", "endseconds", "endtime", "ends", "endsec")
_FOLD = ("fold",)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns in use; "" or () where the table has none.

    Attributes:
      duration: seconds from the start, read only where there is a start and no end.
    """

    audio: str
    captions: tuple[str, ...]
    generated: tuple[str, ...]
    id: str
    split: str
    label: str
    licence: str
    source: str
    start: str
    end: str
    duration: str
    fold: str

    def __str__(self) -> str:
        """The choice in words, for the message that says what was guessed."""
        used = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name)
        }
        shown = {k: "+".join(v) if isinstance(v, tuple) else v for k, v in used.items()}
        return ", ".join(f"{name}={column}" for name, column in shown.items())


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def choose_columns(
    path: Path, columns: Sequence[str], options: Options, *, needs_audio: bool = True
) -> Columns:
    """Decides what each column is.

    Args:
      path: the table, for messages.
      columns: its columns.
      options: columns that the person has named.
      needs_audio: False for tables whose audio lies beside the text (parquet).

    Raises:
      FormatError: a named column is not there, or none looks like audio.
    """
    plain: dict[str, str] = {}
    for name in columns:
        plain.setdefault(_plain(name), name)

    def pick(flag: str, named: str, known: Sequence[str]) -> str:
        if named:
            if named not in columns:
                raise FormatError(
                    f"{path}: no column {named!r} (--{flag}); it has"
                    f" {', '.join(map(repr, columns))}{did_you_mean(named, columns)}"
                )
            return named
        return next((plain[name] for name in known if name in plain), "")

    audio = pick("audio-column", options.audio_column, _AUDIO)
    if needs_audio and not audio:
        raise FormatError(
            f"{path}: which column names the audio file? It has"
            f" {', '.join(map(repr, columns))}; say --audio-column=NAME. A table needs a header"
            " line with the names of its columns"
        )
    captions = tuple(pick("caption-column", name, ()) for name in options.caption_columns)
    generated = tuple(
        pick("generated-caption-column", name, ()) for name in options.generated_columns
    )
    if not captions:
        captions = _caption_columns(plain)
    start = pick("start-column", options.start_column, _START)
    end = pick("end-column", options.end_column, _END)
    return Columns(
        audio=audio,
        captions=captions,
        generated=generated,
        id=pick("id-column", options.id_column, _ID),
        split=pick("split-column", options.split_column, _SPLIT),
        label=pick("label-column", options.label_column, _LABEL),
        licence=pick("", "", _LICENCE),
        source=pick("", "", _SOURCE),
        start=start,
        end=end,
        duration="" if end or not start else pick("", "", ("duration",)),
        fold=pick("", "", _FOLD),
    )


def _caption_columns(plain: dict[str, str]) -> tuple[str, ...]:
    """`caption`, or `caption_1` ... `caption_5`; for the first of the usual words found."""
    for word in _CAPTION:
        numbered = sorted(
            (int(match[1]), name)
            for key, name in plain.items()
            if (match := re.fullmatch(rf"{word}(\d+)", key))
        )
        found = ([plain[word]] if word in plain else []) + [name for _, name in numbered]
        if found:
            return tuple(found)
    return ()
