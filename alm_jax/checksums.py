"""Checksums of a checkpoint's files, so that a byte that changed on the disk is never trained on.

Neither zarr as orbax writes it nor zstd keeps a checksum of the numbers: a flipped bit in them is
read as another number. So a list of every file's size and CRC-32 is written into the checkpoint
before it gets its final name, and compared before it is read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from alm_jax.errors import UserError

FILE_NAME = "checksums.json"
_THREADS = 4  # zlib lets other threads run
_BLOCK = 1 << 22


def write_checksums(checkpoint: epath.Path, items: Iterable[str]) -> None:
    """Writes CHECKPOINT/checksums.json: [bytes, CRC-32] of every file of the items, and its own.

    Args:
      checkpoint: a folder whose files are all written.
      items: its sub-folders to look after.
    """
    paths = [path for item in items for path in _files(checkpoint / item)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_measure, paths))
    names = [path.relative_to(checkpoint).as_posix() for path in paths]
    table = dict(zip(names, found, strict=True))
    content = {"files": table, "crc32": _own(table)}
    (checkpoint / FILE_NAME).write_text(json.dumps(content, indent=0) + "\n")


def check_checksums(checkpoint: epath.Path) -> None:
    """Compares the files with their list; a checkpoint of an earlier version has none.

    Raises:
      UserError: the list is damaged, or a file is missing or other than it was written.
    """
    try:
        text = (checkpoint / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return
    try:
        content = json.loads(text)
        table = content["files"]
        whole = content["crc32"] == _own(table)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{FILE_NAME} holds other bytes than were written")
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _measure(checkpoint / name), table)
        for (name, (size, code)), now in zip(table.items(), found, strict=True):
            if now is None:
                raise UserError(f"{name} is missing")
            if now[0] != size:
                raise UserError(f"{name} has {now[0]:,} bytes, not the {size:,} that were written")
            if now[1] != code:
                raise UserError(f"{name} holds other bytes than were written: its CRC-32 differs")


def _own(table: object) -> int:
    """CRC-32 of the list itself."""
    return zlib.crc32(json.dumps(table).encode())


def _files(folder: epath.Path) -> list[epath.Path]:
    """All files below a folder, which may be in a bucket."""
    found = []
    for path in sorted(folder.iterdir()):
        found += _files(path) if path.is_dir() else [path]
    return found


def _measure(path: epath.Path) -> tuple[int, int] | None:
    """Bytes and CRC-32; None if there is no such file."""
    size = code = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                size, code = size + len(block), zlib.crc32(block, code)
    except FileNotFoundError:
        return None
    return size, code
