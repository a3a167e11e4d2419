"""Finds the audio file that a table means."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

from alm_jax.errors import closest
from input_pipeline.audio_files import AUDIO_SUFFIXES, find_audio_files
from input_pipeline.formats.rows import FormatError

# Video containers and AAC, which libsndfile does not decode: their names still have a stem.
_OTHER_SUFFIXES = frozenset((".mp4", ".m4a", ".webm", ".mkv", ".aac"))

VIDEO_ID = 11  # characters of a YouTube id


def stem_of(name: str) -> str:
    """A file's base name without an audio suffix (`1.5 bar.wav` -> `1.5 bar`, `v1.5` stays)."""
    base = PurePosixPath(name.replace("\\", "/")).name
    suffix = PurePosixPath(base).suffix.lower()
    known = suffix in AUDIO_SUFFIXES or suffix in _OTHER_SUFFIXES
    return base[: -len(suffix)] if known else base


class AudioFiles:
    """The audio below some folders, found by path, by the end of a path, or by base name.

    The extension need not be right (`123.wav` in a table finds `123.flac`) nor be there.
    """

    def __init__(self, *roots: Path | None) -> None:
        self._roots = list(dict.fromkeys(root for root in roots if root is not None))

    def find(self, name: str, within: str = "") -> Path | None:
        """The file, or None.

        Args:
          name: a path or base name from a table, with or without extension.
          within: only files with a folder of this name above them.

        Raises:
          FormatError: several files fit.
        """
        name = name.strip().replace("\\", "/")
        if not name:
            return None
        if not within:
            for root in self._roots:
                path = root / name
                if path.is_file():
                    return path
        folders = PurePosixPath(name).parts[:-1]
        folders = tuple(part for part in folders if part not in ("/", ".", ".."))
        found = [
            path
            for path in self._by_stem.get(stem_of(name), ())
            if (not within or within in path.parts)
            and (not folders or path.parts[-1 - len(folders) : -1] == folders)
        ]
        exact = [path for path in found if path.name == PurePosixPath(name).name]
        found = exact or found
        if len(found) > 1:
            raise FormatError(
                f"{name!r} is the name of {len(found)} files, {found[0]} and {found[1]}: write the"
                " folder into the table, or give --audio-dir"
            )
        return found[0] if found else None

    def with_stem(self, stems: Iterable[str]) -> Path | None:
        """The file that has the first of several base names, without extension, that is there.

        Raises:
          FormatError: several files have it.
        """
        for stem in stems:
            found = self._by_stem.get(stem, ())
            if len(found) > 1:
                raise FormatError(f"{found[0]} and {found[1]} are files of one clip: remove one")
            if found:
                return found[0]
        return None

    def starting_with(self, name: str) -> Path | None:
        """The one file called `NAME_...` or `YNAME_...`, for names of YouTube's length.

        Raises:
          FormatError: several files are.
        """
        stems = self._by_video.get(name, [])
        if len(stems) > 1:
            raise FormatError(
                f"{name!r} fits the files {stems[0]!r} and {stems[1]!r}, and the table does not say"
                " where in the video the clip begins"
            )
        return self.with_stem(stems)

    def why_missing(self, name: str) -> str:
        """A sentence for a name that is not there, with the closest one that is."""
        near = closest(stem_of(name), self._by_stem, limit=1) if len(self._by_stem) < 5000 else []
        hint = f"; did you mean {self._by_stem[near[0]][0].name!r}?" if near else ""
        return f"no audio file {name!r} below {', '.join(map(str, self._roots))}{hint}"

    @property
    def count(self) -> int:
        """How many audio files there are."""
        return sum(map(len, self._by_stem.values()))

    @cached_property
    def _by_video(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for stem in self._by_stem:
            for start in (0, 1) if stem.startswith("Y") else (0,):
                if stem[start + VIDEO_ID :][:1] == "_":
                    found.setdefault(stem[start : start + VIDEO_ID], []).append(stem)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, dict[Path, None]] = {}
        for root in self._roots:
            for path in find_audio_files(root):
                found.setdefault(path.stem, {})[path] = None
        return {stem: list(paths) for stem, paths in found.items()}
