"""Opening and writing official checkpoints: PyTorch files, safetensors, flax, Hugging Face folders.

Nothing is unpickled and nothing is read before it is asked for; see `torch_files`, `flax_files`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from alm_jax.errors import UserError
from alm_jax.interop.checkpoint import Checkpoint, Tensor
from alm_jax.interop.flax_files import read_flax
from alm_jax.interop.torch_files import arguments_of, read_torch

# Where training scripts put the model's tensors, first match counts.
_PLACES = (("0", "params"), ("params",), ("state_dict",), ("model",), ("model_state_dict",), ())
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _SAFETENSORS.items()}
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint; the kind of file is told by its content.

    Args:
      path: a .pth, .pt, .bin, .safetensors or flax file, or a Hugging Face folder.

    Raises:
      UserError: there is none, or it cannot be read, or it holds no tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError(f"--checkpoint={path}: there is no such file or folder")
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9:
        raise UserError(f"{path} is {len(start)} bytes long: it is no checkpoint; copy it again")
    if start[8:9] == b"{" and path.suffix not in (".pth", ".pt", ".bin"):
        return _checkpoint(path, read_safetensors(path), "safetensors", {})
    # A flax file is one msgpack map; a pickle begins with 0x80, which is the map of no entries.
    if (start[0] & 0xF0 == 0x80 and start[0] != 0x80) or start[0] in (0xDE, 0xDF):
        return _checkpoint(path, read_flax(path), "flax", {})
    tree = read_torch(path)
    return _checkpoint(path, tree, "torch", arguments_of(tree))


def _open_folder(path: Path) -> Checkpoint:
    found = next((name for name in _FOLDER_FILES if (path / name).is_file()), None)
    if found is None:
        held = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "nothing"
        raise UserError(
            f"--checkpoint={path}: the folder has no {_FOLDER_FILES[0]} or {_FOLDER_FILES[2]}; it "
            f"holds {held}. Name a Hugging Face folder, or the checkpoint file itself"
        )
    files = [found]
    if found.endswith(".index.json"):
        files = sorted(set(_json(path / found).get("weight_map", {}).values()))
    tree: dict[str, Any] = {}
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{path / found} names {name!r}, which is not a file of that folder")
        safe = name.endswith(".safetensors")
        tree |= read_safetensors(path / name) if safe else read_torch(path / name)
    config = _json(path / "config.json") if (path / "config.json").is_file() else {}
    container = "safetensors" if files[0].endswith(".safetensors") else "torch"
    return _checkpoint(path, tree, container, config)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return found


def _checkpoint(path: Path, tree: Any, container: str, config: Mapping[str, Any]) -> Checkpoint:
    """Finds the model's tensors in what a training script saved."""
    separator = "/" if container == "flax" else "."
    for inside in _PLACES:
        node = tree
        for key in inside:
            node = node.get(key) if isinstance(node, Mapping) else None
        tensors = dict(_flatten(node, separator))
        if tensors:
            break
    else:
        raise UserError(f"{path} holds no tensors (looked for a state dict, also below {_PLACES})")
    beside = _beside(tree, inside)
    prefix = ""
    while found := next((w for w in _WRAPPERS if all(n.startswith(w) for n in tensors)), None):
        tensors = {name.removeprefix(found): tensor for name, tensor in tensors.items()}
        prefix += found
    return Checkpoint(path, tensors, config, container, inside, prefix, beside)


def _flatten(node: Any, separator: str, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _flatten(child, separator, f"{name}{separator}{key}" if name else str(key))


def _beside(tree: Any, inside: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for key in inside:
        found += [str(other) for other in tree if other != key]
        tree = tree[key]
    if not inside:
        found += [str(k) for k, v in tree.items() if not dict(_flatten(v, ".", str(k)))]
    return tuple(found)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of the mapped file, bfloat16 included.

    Raises:
      UserError: it is no such file, or cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _mapped(path, 8 + length, size, name, e) for name, e in header.items()}
    except FileNotFoundError:
        raise UserError(f"there is no {path}, which the folder's index names") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); copy it again") from error


def _mapped(path: Path, start: int, size: int, name: str, entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in _SAFETENSORS:
        raise ValueError(f"{name} is of the type {entry['dtype']}")
    dtype, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
    first, end = entry["data_offsets"]
    if end - first != math.prod(shape) * dtype.itemsize or not 0 <= first <= start + end <= size:
        raise ValueError(f"{name} {shape} lies at bytes {first} to {end}, which cannot be")

    def read() -> np.ndarray:
        if first == end:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", start + first, shape)

    return Tensor(shape, dtype, read)


def write_safetensors(
    path: Path,
    shapes: Sequence[tuple[str, tuple[int, ...], np.dtype]],
    tensors: Iterator[tuple[str, np.ndarray]],
) -> None:
    """Writes tensors one at a time.

    Args:
      path: the file.
      shapes: name, shape and type of every tensor, in the order of `tensors`.
      tensors: names and arrays.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, dtype in shapes:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors:
            file.write(np.ascontiguousarray(array).tobytes() if array.ndim else array.tobytes())


def write_torch(
    path: Path, tensors: Iterator[tuple[str, np.ndarray]], inside: Sequence[str]
) -> None:
    """Writes a state dict with PyTorch, below the keys `inside`.

    Raises:
      UserError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing a .pth file needs PyTorch: pip install 'alm_jax[torch]' (or give an --output "
            "that ends in .safetensors)"
        ) from None

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(np.array(array, np.float32)).to(torch.bfloat16)
        return torch.from_numpy(np.array(array, order="C"))

    tree: Any = {name: tensor(array) for name, array in tensors}
    for key in reversed(inside):
        tree = {key: tree}
    torch.save(tree, path)
