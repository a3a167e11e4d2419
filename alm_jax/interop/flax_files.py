"""Flax checkpoint files (msgpack), read leaf by leaf and written leaf by leaf.

`flax.serialization.msgpack_restore` builds every array of the file, the optimiser's too, beside the
file's bytes. Here the file is mapped and only walked; a leaf is decoded when it is read.

Format: nested maps whose leaves are extension 1, a msgpack tuple (shape, dtype name, bytes); arrays
above 1 GiB are maps of pieces (`__msgpack_chunked_array__`). Source: `flax/serialization.py`.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization

from alm_jax.errors import UserError
from alm_jax.interop.checkpoint import Tensor

_ARRAY = 1  # flax's extension codes; 2 is a complex number, 3 a NumPy scalar
_SCALAR = 3
_CHUNKED = "__msgpack_chunked_array__"
# First byte -> bytes of the length that follows.
_MAPS = {0xDE: 2, 0xDF: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes and strings
# First byte of a number -> bytes of the number.
_NUMBERS = {
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
}


def read_flax(path: Path) -> Any:
    """What flax's `save_checkpoint` or `to_bytes` wrote: nested dicts with `Tensor` leaves.

    Raises:
      UserError: it is no such file, or cut short.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tree, end = _Walk(path, memoryview(mapped)).value(0)
        if end != len(mapped):
            raise ValueError(f"{len(mapped) - end} bytes follow the tree")
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        msgpack.UnpackException,
    ) as error:
        raise UserError(
            f"{path} cannot be read as a flax checkpoint ({type(error).__name__}: {error}); copy "
            "it again"
        ) from error
    return tree


class _Walk:
    """A walk over a mapped file: values are decoded, arrays only located."""

    def __init__(self, path: Path, data: memoryview):
        self.path = path
        self.data = data

    def length(self, at: int, size: int) -> int:
        """A big-endian number of `size` bytes."""
        return int.from_bytes(self.data[at : at + size], "big")

    def value(self, at: int) -> tuple[Any, int]:
        """The value that begins at byte `at`, and where it ends."""
        code = self.data[at]
        if code & 0xF0 == 0x80 or code in _MAPS:
            return self.map(at)
        if code & 0xF0 == 0x90 or code in _LISTS:
            count, at = self.count(at, _LISTS)
            items = []
            for _ in range(count):
                item, at = self.value(at)
                items.append(item)
            return items, at
        if code in _FIXED_EXTENSIONS:
            return self.extension(self.data[at + 1], at + 2, _FIXED_EXTENSIONS[code])
        if code in _EXTENSIONS:
            size = _EXTENSIONS[code]
            kind = self.data[at + 1 + size]
            return self.extension(kind, at + 2 + size, self.length(at + 1, size))
        # Strings, numbers, bytes, None: small, so msgpack may decode them from a copy.
        end = at + self.scalar_size(at)
        if end > len(self.data):
            raise ValueError("the file is cut short")
        return msgpack.unpackb(bytes(self.data[at:end]), raw=False), end

    def scalar_size(self, at: int) -> int:
        """Bytes of a string, a number, bytes or None."""
        code = self.data[at]
        if code < 0x80 or code >= 0xE0 or code in (0xC0, 0xC2, 0xC3):
            return 1
        if code & 0xE0 == 0xA0:
            return 1 + (code & 0x1F)
        if code in _SIZED:
            return 1 + _SIZED[code] + self.length(at + 1, _SIZED[code])
        if code in _NUMBERS:
            return 1 + _NUMBERS[code]
        raise ValueError(f"byte {code:#x} begins no msgpack value")

    def count(self, at: int, long: Mapping[int, int]) -> tuple[int, int]:
        """Number of items of a map or list that begins at `at`, and where the first one begins."""
        code = self.data[at]
        if code not in long:
            return code & 0x0F, at + 1
        return self.length(at + 1, long[code]), at + 1 + long[code]

    def map(self, at: int) -> tuple[Any, int]:
        """A dict, or the array whose pieces it holds."""
        count, at = self.count(at, _MAPS)
        found: dict[str, Any] = {}
        for _ in range(count):
            key, at = self.value(at)
            found[str(key)], at = self.value(at)
        if _CHUNKED not in found:
            return found, at
        shape = tuple(int(found["shape"][str(i)]) for i in range(len(found["shape"])))
        pieces = [found["chunks"][str(i)] for i in range(len(found["chunks"]))]

        def read() -> np.ndarray:
            return np.concatenate([piece.read().reshape(-1) for piece in pieces]).reshape(shape)

        return Tensor(shape, pieces[0].dtype, read), at

    def extension(self, kind: int, at: int, size: int) -> tuple[Any, int]:
        """An array (shape, dtype name, bytes), whose bytes stay where they are."""
        end = at + size
        if end > len(self.data):
            raise ValueError("the file is cut short")
        if kind not in (_ARRAY, _SCALAR):
            return msgpack.ExtType(kind, b""), end
        count, at = self.count(at, _LISTS)
        if count != 3:
            raise ValueError("an array is not (shape, dtype, bytes)")
        shape, at = self.value(at)
        name, at = self.value(at)
        start = at + 1 + _SIZED[self.data[at]]
        dtype = np.dtype(jnp.dtype(name))
        if math.prod(shape) * dtype.itemsize != end - start:
            raise ValueError(f"an array {shape} of {name} has {end - start} bytes")
        path = self.path

        def read() -> np.ndarray:
            # Mapped anew: with the view the pages go back to the system.
            if start == end:
                return np.empty(shape, dtype)
            return np.memmap(path, dtype, "r", start, tuple(shape))

        return Tensor(tuple(shape), dtype, read), end


def write_flax(
    path: Path, leaves: Iterator[tuple[str, np.ndarray]], inside: tuple[str, ...]
) -> None:
    """Writes slash-joined names and arrays as nested maps below the keys `inside`."""
    tree: dict[str, Any] = {}
    for name, array in leaves:
        node = tree
        *parents, last = (*inside, *name.split("/"))
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    packer = msgpack.Packer()
    with path.open("wb") as file:

        def write(node: Any) -> None:
            if not isinstance(node, dict):
                file.write(serialization.msgpack_serialize(np.asarray(node, order="C")))
                return
            file.write(packer.pack_map_header(len(node)))
            for key, child in node.items():
                file.write(packer.pack(key))
                write(child)

        write(tree)
