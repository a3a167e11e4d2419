"""Reads chosen members of package archives in one pass, without unpacking them to disk.

``.deb`` (an ``ar`` archive with 60-byte headers holding ``data.tar.*``), source archives, npm
archives, wheels and zip files; a wanted name ``archive#member`` reaches into a zip that lies inside
the package.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

_AR_MAGIC = b"!<arch>\n"
_READ_BYTES = 1 << 20
# Decompressing here and not in tarfile: its own stream ends silently where a truncated file ends.
_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".tgz": gzip.open,
}

# Only after an archive's suffix: '#' is also a letter of file names (A#4_light.wav).
_NESTED = re.compile(r"(.+\.(?:pk3|zip|jar))#(.+)")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
)


class ArchiveError(RuntimeError):
    """A package archive that cannot be read; the message names the file and the remedy."""


class _Section(io.RawIOBase):
    """A byte range of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._left = file, size
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def _data_member(file: IO[bytes], path: Path) -> tuple[str, int, int]:
    """Name, offset and size of a .deb's data member."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ArchiveError(f"{path}: not a .deb (no ar header); delete it and fetch it again")
    while len(header := file.read(60)) == 60:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        try:
            size = int(header[48:58])
        except ValueError:
            break
        if name.startswith("data.tar"):
            if file.tell() + size > path.stat().st_size:
                break
            return name, file.tell(), size
        file.seek(size + size % 2, io.SEEK_CUR)
    raise ArchiveError(
        f"{path}: damaged archive (no whole data.tar inside); delete it and fetch it again"
    )


@contextlib.contextmanager
def _zstd_stream(section: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """Decompresses zstd (Ubuntu): Python 3.14's own, zstandard or dpkg-deb, as available."""
    for module, opener, error_name in (
        ("compression.zstd", "open", "ZstdError"),
        ("zstandard", "open", "ZstdError"),
    ):
        try:
            zstd = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        try:
            with getattr(zstd, opener)(section, "rb") as stream:
                yield stream
        except getattr(zstd, error_name) as error:
            raise _damaged(path, error) from error
        return
    if shutil.which("dpkg-deb") is None:
        raise ArchiveError(f"{path}: compressed with zstd; run `pip install zstandard` first")
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        yield process.stdout


def _damaged(path: Path, error: Exception) -> ArchiveError:
    return ArchiveError(f"{path}: damaged archive ({error}); delete it and fetch it again")


@contextlib.contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as file:
        name = path.name
        section: IO[bytes] = file
        if path.suffix == ".deb":
            name, start, size = _data_member(file, path)
            section = io.BufferedReader(_Section(file, start, size), _READ_BYTES)
        suffix = Path(name).suffix
        with contextlib.ExitStack() as stack:
            if suffix == ".zst":
                stream = stack.enter_context(_zstd_stream(section, path))
            elif suffix in _DECOMPRESSORS:
                stream = stack.enter_context(_DECOMPRESSORS[suffix](section, "rb"))
            else:
                stream = section
            yield stack.enter_context(tarfile.open(fileobj=stream, mode="r|", bufsize=_READ_BYTES))


def is_zip(path: Path) -> bool:
    """True for wheels and zip files, by suffix.

    Not ``zipfile.is_zipfile``: it looks at a file's end, where an uncompressed package may hold a
    zip of its own.
    """
    return path.suffix in (".whl", ".zip")


def _strip_top(name: str, path: Path) -> str:
    """Member name without ./ and, in source and npm archives, without the first folder."""
    name = name.removeprefix("./").lstrip("/")
    if path.name.endswith((".tar.gz", ".tgz", ".tar.bz2")):
        return name.partition("/")[2]
    return name


def _members(
    path: Path,
) -> Iterator[tuple[str, zipfile.ZipInfo | tarfile.TarInfo, zipfile.ZipFile | tarfile.TarFile]]:
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry, archive
        return
    with _open_tar(path) as tar:
        for member in tar:
            if member.isfile():
                yield _strip_top(member.name, path), member, tar


def read_members(path: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of those ``wanted`` members that are there, in archive order.

    Args:
      path: a .deb, .whl, .zip, .tar.gz or .tgz file.
      wanted: member names; ``archive#member`` looks into a zip inside the package.

    Raises:
      ArchiveError: the archive is damaged or compressed in a way that nothing here reads. Members
        before the damage have been yielded by then.
    """
    plain: set[str] = set()
    nested: dict[str, set[str]] = {}
    for name in wanted:
        if match := _NESTED.fullmatch(name):
            nested.setdefault(match[1], set()).add(match[2])
        else:
            plain.add(name)
    try:
        for name, entry, archive in _members(path):
            if name not in plain and name not in nested:
                continue
            if isinstance(archive, zipfile.ZipFile):
                assert isinstance(entry, zipfile.ZipInfo)
                data = archive.read(entry)
            else:
                assert isinstance(entry, tarfile.TarInfo)
                stream = archive.extractfile(entry)
                data = stream.read() if stream is not None else b""
            if name in plain:
                yield name, data
            if name in nested:
                with zipfile.ZipFile(io.BytesIO(data)) as inner_zip:
                    for inner in inner_zip.namelist():
                        if inner in nested[name]:
                            yield f"{name}#{inner}", inner_zip.read(inner)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
