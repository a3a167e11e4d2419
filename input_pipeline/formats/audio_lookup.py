"""Finds the audio file that a table means."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from alm_jax.errors import closest
from input_pipeline.audio_files import AUDIO_SUFFIXES, find_audio_files
from input_pipeline.formats.rows import FormatError

# Video containers and AAC, which libsndfile does not decode: their names still have a stem.
_OTHER_SUFFIXES = frozenset((".mp4", ".m4a", ".webm", ".mkv", ".aac"))

VIDEO_ID = 11  # characters of a YouTube id

_Sorted = tuple[np.ndarray, np.ndarray]  # hashes int64 [n], numbers of files uint32 [n]


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
            for path in self._files.by_stem(stem_of(name))
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
            found = self._files.by_stem(stem)
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
        stems = list(dict.fromkeys(path.stem for path in self._files.by_video(name)))
        if len(stems) > 1:
            raise FormatError(
                f"{name!r} fits the files {stems[0]!r} and {stems[1]!r}, and the table does not say"
                " where in the video the clip begins"
            )
        return self.with_stem(stems)

    def why_missing(self, name: str) -> str:
        """A sentence for a name that is not there, with the closest one that is."""
        near: list[str] = []
        if len(self._files) < 5000:
            near = closest(stem_of(name), {path.stem for path in self._files}, limit=1)
        hint = f"; did you mean {self._files.by_stem(near[0])[0].name!r}?" if near else ""
        return f"no audio file {name!r} below {', '.join(map(str, self._roots))}{hint}"

    @cached_property
    def _files(self) -> _Files:
        outer = [
            root for root in self._roots if not any(other in root.parents for other in self._roots)
        ]
        return _Files(path for root in outer for path in find_audio_files(root))


class _Files:
    """Files, found by what their names begin with: 40 bytes each and the name.

    In a dict of paths each takes a kilobyte, which millions of files have no room for.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._folders: list[str] = []
        self._folder_of, self._starts = array("I"), array("Q", [0])
        names = bytearray()
        for path in paths:
            folder, name = os.path.split(path)
            if not self._folders or folder != self._folders[-1]:
                self._folders.append(folder)
            self._folder_of.append(len(self._folders) - 1)
            names += os.fsencode(name)
            self._starts.append(len(names))
        self._names = bytes(names)

    def __len__(self) -> int:
        return len(self._folder_of)

    def __iter__(self) -> Iterator[Path]:
        return map(self._path, range(len(self)))

    def by_stem(self, stem: str) -> list[Path]:
        """The files of this base name without suffix, in order."""
        return [path for path in map(self._path, _places(self._stems, stem)) if path.stem == stem]

    def by_video(self, video: str) -> list[Path]:
        """The files called `VIDEO_...` or `YVIDEO_...`, in order."""
        found = map(self._path, _places(self._videos, video))
        return [path for path in found if video in _videos_of(path.stem)]

    def _name(self, number: int) -> str:
        return os.fsdecode(self._names[self._starts[number] : self._starts[number + 1]])

    def _path(self, number: int) -> Path:
        return Path(self._folders[self._folder_of[number]], self._name(number))

    @cached_property
    def _stems(self) -> _Sorted:
        return _sorted((PurePosixPath(self._name(n)).stem,) for n in range(len(self)))

    @cached_property
    def _videos(self) -> _Sorted:
        return _sorted(_videos_of(PurePosixPath(self._name(n)).stem) for n in range(len(self)))


def _videos_of(stem: str) -> list[str]:
    """The videos that a file may be a clip of: `VIDEO_...`, `YVIDEO_...`."""
    starts = (0, 1) if stem.startswith("Y") else (0,)
    return [stem[s:][:VIDEO_ID] for s in starts if stem[s + VIDEO_ID :][:1] == "_"]


def _sorted(words: Iterable[Iterable[str]]) -> _Sorted:
    """Hashes of the words of every file, ascending, and the files' numbers."""
    hashes, places = array("q"), array("I")
    for number, some in enumerate(words):
        for word in some:
            hashes.append(hash(word))
            places.append(number)
    found = np.frombuffer(hashes, np.int64) if hashes else np.zeros(0, np.int64)
    order = np.argsort(found, kind="stable")
    return found[order], np.array(places, np.uint32)[order]


def _places(table: _Sorted, word: str) -> list[int]:
    """The numbers of the files that have a word; perhaps of another with its hash."""
    hashes, places = table
    wanted = np.int64(hash(word))
    first, last = (int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))
    return places[first:last].tolist()
