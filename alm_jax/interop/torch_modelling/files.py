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
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int(raw[:8].view("<u8")[0])
    if start > len(raw):
        raise ValueError(f"{path} is cut short or is not a safetensors file; export again")
    header = json.loads(raw[8:start].tobytes())
    header.pop("__metadata__", None)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] not in kinds or last > len(raw):
            raise ValueError(f"{path}: {name} is no float tensor or is cut short; export again")
        values = torch.from_numpy(np.array(raw[first:last])).view(kinds[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"]).float()
    return tensors
