"""PyTorch checkpoint files (.pth, .pt, .bin) without PyTorch, and without running what is in them.

A checkpoint is a pickle, and an ordinary unpickler runs any function that the pickle names. This
one knows only the builders of tensors and containers; whatever else a training script left there
(argparse arguments, an optimiser, a numpy random state) becomes a `Foreign`, which holds values and
does nothing. Tensors are views of the mapped file.

Formats: the zip archive of torch >= 1.6 and the stream of pickles before it.
"""

from __future__ import annotations

import collections
import io
import mmap
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from alm_jax.errors import UserError
from alm_jax.interop.checkpoint import Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


# What reading an archive that was cut, changed or locked ends in.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class Foreign:
    """An object of a class that is not ours to build: its name, arguments and attributes."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.arguments = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # Pickles fill subclasses of list, set and dict item by item.
    def append(self, item: Any) -> None:
        """Drops an item."""

    def extend(self, items: Any) -> None:
        """Drops items."""

    def add(self, item: Any) -> None:
        """Drops an item."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class Namespace(Foreign):
    """argparse.Namespace: the arguments of the training run, as attributes in `state`."""


class _Storage:
    """A flat buffer of the file, read when a tensor is."""

    def __init__(self, dtype: np.dtype, key: str):
        self.dtype = dtype
        self.key = key
        self.load: Callable[[], np.ndarray] | None = None

    def values(self) -> np.ndarray:
        if self.load is None:
            raise ValueError(f"the storage {self.key} is missing")
        return self.load()


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor of size {size} has strides {stride} and offset {offset}")

    def read() -> np.ndarray:
        values = storage.values()
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 in size:
            return np.empty(size, storage.dtype)
        if last >= len(values):
            raise UserError(
                f"the checkpoint holds a tensor of size {size} that is larger than its storage "
                f"{storage.key}: the file is damaged or forged; copy it again"
            )
        steps = [s * values.itemsize for s in stride]
        return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)

    return Tensor(size, storage.dtype, read)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _StorageType:
    """Stands for torch.FloatStorage and its like."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


_BUILDERS: dict[tuple[str, str], Any] = {
    # A state dict carries an attribute, which a plain dict could not.
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: collections.defaultdict(lambda: None),
    ("torch", "Size"): lambda *args: tuple(*args),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("argparse", "Namespace"): Namespace,
}


class _Unpickler(pickle.Unpickler):
    """Builds tensors and containers; everything else becomes a `Foreign`."""

    def __init__(self, file: io.BufferedIOBase | io.BytesIO, storages: dict[str, _Storage]):
        super().__init__(file, encoding="latin1")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name]))
        if (module, name) in _BUILDERS:
            return _BUILDERS[module, name]
        return type(name, (Foreign,), {"__module__": f"foreign.{module}"})

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"an unknown reference {pid!r:.60}")
        _, kind, key, _, _ = pid[:5]
        if not isinstance(kind, _StorageType):
            raise pickle.UnpicklingError(f"storage {key} is of an unknown type")
        if len(pid) > 5 and pid[5] is not None:  # before 1.6: a view into another storage
            raise pickle.UnpicklingError(f"storage {key} is a view, which is not supported")
        return self.storages.setdefault(str(key), _Storage(kind.dtype, str(key)))


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote: nested dicts and lists with `Tensor` and `Foreign` leaves.

    Args:
      path: a .pth, .pt, .bin or .ckpt file.

    Raises:
      UserError: it is no such file, or cut short.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_stream(path)
    except (
        *_DAMAGE,
        pickle.UnpicklingError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}: {error}); "
            "copy it again, or save its state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = {info.filename: info for info in archive.infolist()}
        found = [name for name in names if name.endswith("/data.pkl")]
        if not found:
            raise ValueError("the zip archive holds no data.pkl")
        root = found[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in names and archive.read(order) != sys.byteorder.encode():
            raise ValueError("the bytes are in the order of another kind of machine")
        storages: dict[str, _Storage] = {}
        tree = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storages).load()
        for key, storage in storages.items():
            info = names.get(f"{root}data/{key}")
            if info is None:
                raise ValueError(f"the storage {key} is missing")
            if info.compress_type == zipfile.ZIP_STORED:
                storage.load = _mapped(path, _data_offset(path, info), info.file_size, storage)
            else:
                storage.load = _unzipped(path, info.filename, storage)
    return tree


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header, which says its length."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header for {info.filename}")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths


def _mapped(path: Path, offset: int, size: int, storage: _Storage) -> Callable[[], np.ndarray]:
    if offset + size > path.stat().st_size:
        raise EOFError(f"storage {storage.key} is cut short")

    def load() -> np.ndarray:
        if size == 0:
            return np.empty(0, storage.dtype)
        count = size // storage.dtype.itemsize
        return np.memmap(path, storage.dtype, "r", offset, (count,))

    return load


def _unzipped(path: Path, member: str, storage: _Storage) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive:
                return np.frombuffer(archive.read(member), storage.dtype)
        except (*_DAMAGE, ValueError) as error:
            raise UserError(
                f"{path}: {member} cannot be unpacked ({type(error).__name__}: {error}); copy the "
                "file again"
            ) from error

    return load


def _read_stream(path: Path) -> Any:
    """The format before torch 1.6: pickles one after another, then the storages' bytes."""
    storages: dict[str, _Storage] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:

        def load() -> Any:
            return _Unpickler(mapped, storages).load()  # type: ignore[arg-type]

        if load() != _LEGACY_MAGIC:
            raise ValueError("it is neither a zip archive nor torch's older format")
        load()  # protocol version
        load()  # byte order and sizes of the machine that wrote it
        tree = load()
        for key in load():
            storage = storages[str(key)]
            count = int.from_bytes(mapped.read(8), "little")
            size = count * storage.dtype.itemsize
            storage.load = _mapped(path, mapped.tell(), size, storage)
            mapped.seek(size, io.SEEK_CUR)
    return tree


def arguments_of(tree: Any) -> Mapping[str, Any]:
    """The training script's arguments, where the file holds them as `args` or `config`."""
    if not isinstance(tree, Mapping):
        return {}
    for key in ("args", "config", "hparams", "hyper_parameters"):
        found = tree.get(key)
        if isinstance(found, Namespace):
            found = found.state
        if isinstance(found, Mapping):
            return found
    return {}
