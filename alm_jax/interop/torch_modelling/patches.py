"""Log-mel spectrograms as sets of patches that know their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Patches(NamedTuple):
    """Patches of a batch of clips: values [B, N, P], places time and freq [B, N], mask [B, N]."""

    values: Tensor
    time: Tensor
    freq: Tensor
    mask: Tensor

    def take(self, index: Any) -> Patches:
        """The slots `index`, int [n] for every clip or [B, n] for each."""
        index = torch.as_tensor(index, device=self.mask.device).long()
        rows = torch.arange(self.mask.shape[0], device=self.mask.device)[:, None]
        return Patches(*(part[rows, index] for part in self))


class PatchShape(NamedTuple):
    """Of patches: pixels P, frequency rows R, columns C (0: as many as fill the clip)."""

    pixels: int
    rows: int
    columns: int


def patch_columns(frames: Any, c: Mapping[str, Any]) -> Any:
    """Columns of patches in `frames` frames (int or Tensor), perhaps less than 1."""
    stride = c.get("time_stride") or c["time"]
    over = frames - c["time"] + (stride - 1 if c["tail"] == "keep" else 0)
    return over // stride + 1


def patch_shape(c: Mapping[str, Any], num_mels: int) -> PatchShape:
    """Shape of the patches that the group "patches" of config.json describes."""
    rows = (num_mels - c["freq"]) // (c.get("freq_stride") or c["freq"]) + 1
    fixed = c.get("frames", 0)
    return PatchShape(c["time"] * c["freq"], rows, int(patch_columns(fixed, c)) if fixed else 0)


def cut(mel: Tensor, frames: Tensor, c: Mapping[str, Any], silence: float) -> Patches:
    """Patches of log-mel [B, T, F] with `frames` [B] valid: time outermost, then frequency."""
    length, fixed = mel.shape[1], c.get("frames", 0)
    if fixed:
        length, frames = fixed, torch.full_like(frames, fixed)
    rows, columns = patch_shape(c, mel.shape[2]).rows, max(1, patch_columns(length, c))
    stride, freq_stride = c.get("time_stride") or c["time"], c.get("freq_stride") or c["freq"]
    mel = functional.pad(mel, (0, 0, 0, c["time"] + stride + fixed), value=silence)
    device = mel.device
    in_time = stride * torch.arange(columns, device=device)[:, None]
    in_freq = freq_stride * torch.arange(rows, device=device)[:, None]
    grid = mel[:, in_time + torch.arange(c["time"], device=device)]
    grid = grid[..., in_freq + torch.arange(c["freq"], device=device)]
    values = grid.transpose(2, 3).flatten(3).flatten(1, 2)
    slots = torch.arange(columns * rows, device=device)
    time, freq = slots // rows, slots % rows
    mask = time < patch_columns(frames, c).clamp(1, columns)[:, None]
    return Patches(values * mask[..., None], time * mask, freq * mask, mask)
