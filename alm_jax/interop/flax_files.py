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
from alm_jax.interop.importing import Tensor

_ARRAY = 1  # flax's extension codes; 2 is a complex number, 3 a NumPy scalar
_SCALAR = 3
_CHUNKED = "__msgpack_chunked_array__"
# First byte -> bytes of the length that follows.
_MAPS = {0xDE: 2, 0xDF: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read_flax(path: Path) -> Any:
    """What flax's `save_checkpoint` or `to_bytes` wrote: nested dicts with `Tensor` leaves.

    Raises:
      UserError: it is no such file, or cut short.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tree, end = _value(memoryview(mapped), 0)
        if end != len(mapped):
            raise ValueError(f"{len(mapped) - end} bytes follow the tree")
    except (ValueError, IndexError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise UserError(
            f"{path} cannot be read as a flax checkpoint ({type(error).__name__}: {error}); copy "
            "it again"
        ) from error
    return tree


def _length(data: memoryview, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _value(data: memoryview, at: int) -> tuple[Any, int]:
    """The value that begins at byte `at`, and where it ends."""
    code = data[at]
    if code & 0xF0 == 0x80 or code in _MAPS:
        return _map(data, at, code)
    if code & 0xF0 == 0x90 or code in _LISTS:
        count, at = _header(data, at, code, _LISTS, 0x0F)
        items = []
        for _ in range(count):
            item, at = _value(data, at)
            items.append(item)
        return items, at
    if code in _FIXED_EXTENSIONS:
        return _extension(data, data[at + 1], at + 2, _FIXED_EXTENSIONS[code])
    if code in _EXTENSIONS:
        size = _EXTENSIONS[code]
        kind = data[at + 1 + size]
        return _extension(data, kind, at + 2 + size, _length(data, at + 1, size))
    # Strings, numbers, bytes, None: small, so msgpack may decode them from a copy.
    size = _scalar_size(data, at, code)
    if at + size > len(data):
        raise ValueError("the file is cut short")
    return msgpack.unpackb(bytes(data[at : at + size]), raw=False), at + size


def _scalar_size(data: memoryview, at: int, code: int) -> int:
    if code < 0x80 or code >= 0xE0 or code in (0xC0, 0xC2, 0xC3):
        return 1
    if code & 0xE0 == 0xA0:
        return 1 + (code & 0x1F)
    sized = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
    if code in sized:
        return 1 + sized[code] + _length(data, at + 1, sized[code])
    fixed = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4}
    fixed[0xD3] = 8
    if code not in fixed:
        raise ValueError(f"byte {code:#x} begins no msgpack value")
    return 1 + fixed[code]


def _header(
    data: memoryview, at: int, code: int, long: Mapping[int, int], short_mask: int
) -> tuple[int, int]:
    if code not in long:
        return code & short_mask, at + 1
    return _length(data, at + 1, long[code]), at + 1 + long[code]


def _map(data: memoryview, at: int, code: int) -> tuple[Any, int]:
    count, at = _header(data, at, code, _MAPS, 0x0F)
    found: dict[str, Any] = {}
    for _ in range(count):
        key, at = _value(data, at)
        found[str(key)], at = _value(data, at)
    if _CHUNKED not in found:
        return found, at
    shape = tuple(int(found["shape"][str(i)]) for i in range(len(found["shape"])))
    pieces = [found["chunks"][str(i)] for i in range(len(found["chunks"]))]

    def read() -> np.ndarray:
        return np.concatenate([piece.read().reshape(-1) for piece in pieces]).reshape(shape)

    return Tensor(shape, pieces[0].dtype, read), at


def _extension(data: memoryview, kind: int, at: int, size: int) -> tuple[Any, int]:
    if at + size > len(data):
        raise ValueError("the file is cut short")
    if kind not in (_ARRAY, _SCALAR):
        return msgpack.ExtType(kind, b""), at + size
    # (shape, dtype name, bytes): the first two are decoded here, the third stays where it is.
    body = data[at : at + size]
    count, inner = _header(body, 0, body[0], _LISTS, 0x0F)
    if count != 3:
        raise ValueError("an array is not (shape, dtype, bytes)")
    shape, inner = _value(body, inner)
    name, inner = _value(body, inner)
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}[body[inner]]
    start = inner + 1 + width
    dtype = np.dtype(jnp.dtype(name))
    if math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError(f"an array {shape} of {name} has {size - start} bytes")
    values = body[start:]
    return Tensor(tuple(shape), dtype, lambda: np.frombuffer(values, dtype).reshape(shape)), (
        at + size
    )


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
