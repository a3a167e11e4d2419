"""Reading the weights of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Float32 tensors of a safetensors file: 8 bytes of header length, JSON header, raw values.

    Float32 is copied, bfloat16 and float16 are cast.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError(f"{path} is cut short or is not a safetensors file; export again")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] not in kinds or last > size:
            raise ValueError(f"{path}: {name} is no float tensor or is cut short; export again")
        values = torch.from_numpy(np.fromfile(path, np.uint8, last - first, offset=first))
        values = values.view(kinds[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"]).float()
    return tensors
