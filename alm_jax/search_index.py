"""The embeddings of a folder's sounds, kept between runs, and the search in them.

The index of a folder lies in the user's cache folder. A file is embedded again only if its size or
modification time has changed, or the model has; so a second start takes no longer than loading.
Shapes: n sounds, d embedding width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alm_jax import __version__
from alm_jax.embed import write_npz
from alm_jax.errors import UserError
from input_pipeline.audio_files import AUDIO_SUFFIXES, find_audio_files

if TYPE_CHECKING:
    from alm_jax.inference.model import Model

# Part of the key of a saved index: raise it when what is saved changes its meaning.
_LAYOUT = 1
# An interrupted first run loses no more than this.
_SAVE_EVERY_SECONDS = 60.0
# Reasons that lie in the file itself; others (no permission) may be gone without the file changing.
_LASTING = ("not_audio", "empty", "non_finite", "silent")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one file.

    Attributes:
      mtime_ns: modification time and
      size: bytes, by which a change is noticed.
      seconds: its duration.
      problem: why it cannot be found by searching, "reason: detail"; "" if it can.
      embedding: float32 [d] of norm 1; zeros where there is a problem.
    """

    mtime_ns: int
    size: int
    seconds: float
    problem: str
    embedding: np.ndarray


@dataclasses.dataclass(frozen=True)
class Hit:
    """One result: cosine similarity of the text and the sound, in -1..1; path; duration."""

    score: float
    path: str
    seconds: float


class Index:
    """The sounds of a folder that can be searched."""

    def __init__(self, folder: Path, entries: dict[str, Entry]) -> None:
        """Takes the entries by path relative to `folder`."""
        self.folder = folder
        self.skipped = {
            os.fspath(folder / name): entry.problem
            for name, entry in entries.items()
            if entry.problem
        }
        self._good = [(name, entry) for name, entry in entries.items() if not entry.problem]
        rows = [entry.embedding for _, entry in self._good]
        self._matrix = np.stack(rows) if rows else np.zeros((0, 1), np.float32)

    def __len__(self) -> int:
        return len(self._good)

    def search(self, query: np.ndarray, top: int) -> list[Hit]:
        """The `top` sounds most like a text embedding [d], best first; ties by name."""
        scores = self._matrix @ query
        best = np.argsort(-scores, kind="stable")[:top]
        return [
            Hit(
                float(scores[row]),
                os.fspath(self.folder / self._good[row][0]),
                self._good[row][1].seconds,
            )
            for row in best
        ]


def cache_folder() -> Path:
    """Where indexes are kept: $ALM_JAX_CACHE, else the user's cache folder."""
    chosen = os.environ.get("ALM_JAX_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "alm_jax"


def build_index(
    model: Model, folder: str | os.PathLike[str], *, batch_size: int = 16, fresh: bool = False
) -> Index:
    """Embeds the sounds of a folder, those that are not in the saved index, and saves it.

    Args:
      model: a model with a text side.
      folder: searched to its depths, hidden files left out.
      batch_size: windows that the model takes at a time.
      fresh: embed everything anew.

    Returns:
      The index. What cannot be used, and what is silent, is in its `skipped`.

    Raises:
      UserError: no such folder, or no audio file in it.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise UserError(
            f"--audio={os.fspath(folder)}: no such folder; search needs a folder of sounds"
        )
    names = [os.path.relpath(path, root) for path in find_audio_files(root)]
    if not names:
        suffixes = " ".join(sorted(AUDIO_SUFFIXES))
        raise UserError(f"{root}: no audio file in this folder (looked for {suffixes})")
    saved = _saved_file(model, root)
    known = {} if fresh else _read(saved, model.embed_dim)
    entries: dict[str, Entry] = {}
    missing: dict[str, tuple[int, int]] = {}
    for name in names:
        stamp = _stamp(root / name)
        entry = known.get(name)
        if entry is not None and (entry.mtime_ns, entry.size) == stamp:
            entries[name] = entry
        else:
            missing[name] = stamp
    if missing:
        _embed(model, root, missing, entries, saved, batch_size)
    if missing or known.keys() != entries.keys():
        _write(saved, entries)
    return Index(root, {name: entries[name] for name in names})


def _embed(
    model: Model,
    root: Path,
    missing: dict[str, tuple[int, int]],
    entries: dict[str, Entry],
    saved: Path,
    batch_size: int,
) -> None:
    """Embeds the files named in `missing` into `entries`, saving now and then."""
    from tqdm import tqdm

    names = list(missing)
    paths = [root / name for name in names]
    last_save = time.monotonic()
    with tqdm(total=len(names), unit="file", desc="indexing", delay=2.0, file=sys.stderr) as bar:
        for result in model.embed_audio_each(paths, batch_size=batch_size):
            problem = ""
            if result.error is not None:
                problem = f"{result.error.reason}: {result.error.detail}"
            elif result.silent:
                problem = "silent: never above -72 dB"
            embedding = np.zeros(model.embed_dim, np.float32)
            if result.value is not None and not problem:
                embedding = result.value
            name = names[result.index]
            entries[name] = Entry(*missing[name], result.seconds, problem, embedding)
            bar.update()
            if time.monotonic() - last_save > _SAVE_EVERY_SECONDS:
                _write(saved, entries)
                last_save = time.monotonic()


def _stamp(path: Path) -> tuple[int, int]:
    """Modification time (ns) and size in bytes; zeros for what cannot be asked."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _saved_file(model: Model, root: Path) -> Path:
    key = "\0".join([str(_LAYOUT), __version__, model.fingerprint, os.fspath(root)])
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    return cache_folder() / "search" / f"{digest}.npz"


def _read(saved: Path, width: int) -> dict[str, Entry]:
    """Reads a saved index; an unreadable one is as good as none."""
    try:
        with np.load(saved, allow_pickle=False) as file:
            columns = [file[field.name] for field in dataclasses.fields(Entry)]
            names: Sequence[str] = file["name"].tolist()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"alm search: note: {saved} is damaged ({error}); indexing anew", file=sys.stderr)
        return {}
    if columns[-1].shape != (len(names), width):
        return {}
    return {
        name: Entry(int(mtime), int(size), float(seconds), str(problem), embedding)
        for name, mtime, size, seconds, problem, embedding in zip(names, *columns, strict=True)
    }


def _write(saved: Path, entries: dict[str, Entry]) -> None:
    """Saves the index; where that fails, the next start is slow, and nothing else."""
    kept = {
        name: entry
        for name, entry in entries.items()
        if not entry.problem or entry.problem.startswith(_LASTING)
    }
    if not kept:
        return
    columns = {
        field.name: np.asarray([getattr(entry, field.name) for entry in kept.values()])
        for field in dataclasses.fields(Entry)
    }
    try:
        write_npz(saved, {"name": np.asarray(list(kept)), **columns})
    except OSError as error:
        print(f"alm search: note: the index cannot be kept in {saved}: {error}", file=sys.stderr)
