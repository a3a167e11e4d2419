"""TUT Acoustic Scenes 2017: one of fifteen scenes a clip.

Source: the folders and `meta.txt` (tab-separated: file, scene, and the recording's place in the
development set) as code that reads the published archives expects them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from input_pipeline.formats.audio_lookup import AudioFiles, stem_of
from input_pipeline.formats.rows import Format, FormatError, Options, Row
from input_pipeline.formats.tables import read_text

_FOLDER = "TUT-acoustic-scenes-2017-"
_SUBSETS = {"development": "train", "evaluation": "test"}


def _tables(root: Path) -> dict[str, Path]:
    """`meta.txt` of each subset that is there."""
    found = {}
    for subset in _SUBSETS:
        name = f"{_FOLDER}{subset}/meta.txt"
        for path in (root / name, *sorted(root.glob(f"*/{name}")), root / "meta.txt"):
            if path.is_file() and path.parent.resolve().name == f"{_FOLDER}{subset}":
                found[subset] = path
                break
    return found


def tut2017_why(root: Path) -> str | None:
    """The tables of its archives."""
    found = _tables(root)
    return next((f"there is {path.parent.name}/{path.name}" for path in found.values()), None)


def tut2017_rows(root: Path, options: Options) -> Iterator[Row]:
    """One scene a clip: the development set is `train`, the evaluation set `test`."""
    for subset, path in _tables(root).items():
        files = AudioFiles(options.audio_dir, path.parent)
        for number, line in enumerate(read_text(path, options.encoding).splitlines(), 1):
            cells = [cell.strip() for cell in line.split("\t")]
            if cells == [""]:
                continue
            if len(cells) < 2 or not cells[1]:
                raise FormatError(f"{path}: line {number} is not 'file<TAB>scene': {line!r:.80}")
            name, scene = cells[:2]
            audio = files.find(name)
            yield Row(
                id=f"{subset}/{stem_of(name)}",
                audio=audio,
                labels=(scene,),
                split=_SUBSETS[subset],
                source="TUT Acoustic Scenes 2017",
                group=cells[2] if len(cells) > 2 else "",
                where=f"{subset}/meta.txt line {number}",
                problem="" if audio else files.why_missing(name),
            )


FORMATS = (
    Format("tut2017", "TUT Acoustic Scenes 2017", tut2017_why, tut2017_rows, published=True),
)
