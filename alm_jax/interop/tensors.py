"""Parameter names and layouts in PyTorch, and back.

JAX: nested dicts, kernels [inputs, outputs], the layers of a stack on a leading axis under
`*.blocks.*`. PyTorch: flat dotted names, weights [outputs, inputs], one entry a layer:

    audio.transformer.blocks.attention.query.kernel [12, D, D]
    -> audio.transformer.blocks.0.attention.query.weight [D, D] ... blocks.11...
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Last part of a JAX name -> of a PyTorch name; other parts keep theirs.
_LEAVES = {"kernel": "weight", "scale": "weight"}


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array to fill, which JAX takes over without a copy: it begins at 64 bytes."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def align(tree: dict[str, Any]) -> None:
    """Replaces the arrays of nested dicts by aligned ones in float32, one after another."""
    for key, value in tree.items():
        if isinstance(value, dict):
            align(value)
        else:
            array = aligned(value.shape)
            array[...] = value
            tree[key] = array


def torch_slices(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Any, bool]]:
    """Where a JAX parameter goes.

    Args:
      name: dotted JAX name.
      shape: its shape.

    Yields:
      (PyTorch name, index into the JAX array, whether to put the last two axes first).
    """
    *parents, last = name.split(".")
    transposed = last == "kernel"
    names = [*parents, _LEAVES.get(last, last)]
    if "blocks" not in parents:
        yield ".".join(names), ..., transposed
        return
    after = parents.index("blocks") + 1
    for layer in range(shape[0]):
        yield ".".join([*names[:after], str(layer), *names[after:]]), layer, transposed


def _swap(array: np.ndarray) -> np.ndarray:
    """A kernel [..., inputs, outputs] as [outputs, inputs, ...]: linear layers and convolutions."""
    axes = range(array.ndim)
    return array.transpose(axes[-1], axes[-2], *axes[:-2])


def _swap_back(array: np.ndarray) -> np.ndarray:
    axes = range(array.ndim)
    return array.transpose(*axes[2:], 1, 0)


def to_torch(params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """PyTorch names and arrays (views where possible) of dotted JAX names and arrays."""
    for name, leaf in params.items():
        array = np.asarray(leaf)
        for torch_name, index, transposed in torch_slices(name, array.shape):
            part = array[index]
            yield torch_name, _swap(part) if transposed else part


def from_torch(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """Inverse of `to_torch`.

    Args:
      shapes: dotted JAX names and shapes wanted.
      read: gives the tensor of a PyTorch name.

    Returns:
      Dotted JAX names and float32 arrays.

    Raises:
      ValueError: a tensor has another shape; the message names it.
    """
    params = {}
    for name, shape in shapes.items():
        out = aligned(shape)
        for torch_name, index, transposed in torch_slices(name, shape):
            tensor = read(torch_name)
            tensor = _swap_back(tensor) if transposed else tensor
            if tensor.shape != out[index].shape:
                raise ValueError(
                    f"{torch_name} has the shape {tensor.shape} (as {name}), but the config needs "
                    f"{out[index].shape}"
                )
            out[index] = tensor
        params[name] = out
    return params


def write_safetensors(path: Path, params: Mapping[str, Any]) -> int:
    """Writes dotted JAX parameters as float32 tensors in PyTorch's names and layout.

    One tensor is in memory at a time: `safetensors.numpy.save_file` would hold the transposed
    tensors and the file's bytes besides the parameters, three times the model.

    Returns:
      The number of parameters.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = count = 0
    for name, array in to_torch(params):
        start, end = end, end + 4 * array.size
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, end]}
        count += array.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in to_torch(params):
            file.write(np.ascontiguousarray(array, "<f4").data)
    return count
