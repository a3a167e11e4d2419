"""Spectrograms as square pictures, and the views of clips that are too long for one."""

from __future__ import annotations

import torch
from torch import Tensor


def pick(mel: Tensor, index: Tensor) -> Tensor:
    """Frames `index` [B, n] of mel [B, T, F]."""
    return mel.gather(1, index[..., None].expand(-1, -1, mel.shape[2]))


def stretch(mel: Tensor, frames: Tensor, length: int) -> Tensor:
    """The valid `frames` [B] of mel [B, T, F] resampled to [B, length, F], ends on ends (cubic)."""
    last = frames.clamp(min=1)[:, None] - 1
    place = last.float() / (length - 1) * torch.arange(length, device=mel.device).float()
    before = place.floor().long()
    out = torch.zeros_like(mel[:, :1])
    for offset in (-1, 0, 1, 2):
        d = (place - before - offset).abs()
        near = (1.25 * d - 2.25) * d * d + 1.0
        far = ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0
        index = torch.minimum((before + offset).clamp(min=0), last)
        out = out + pick(mel, index) * torch.where(d <= 1.0, near, far)[..., None]
    return out


def fold(mel: Tensor, parts: int) -> Tensor:
    """[B, parts * S, F] -> [B, S, S]: parts of time one below the other, frequency in rows."""
    return mel.unflatten(1, (parts, -1)).transpose(2, 3).flatten(1, 2)


def picture_patches(picture: Tensor, rows: int, columns: int) -> Tensor:
    """[B, S, S] -> [B, S / rows, S // columns, rows * columns]; spare columns are left out."""
    across = picture.shape[2] // columns
    grid = picture[:, :, : across * columns].unflatten(2, (across, columns))
    return grid.unflatten(1, (-1, rows)).transpose(2, 3).flatten(3)


def squeeze(mel: Tensor, frames: Tensor, chunk: int) -> Tensor:
    """The first `frames` [B] of mel [B, T, F] resampled linearly to [B, chunk, F]."""
    centre = torch.arange(chunk, device=mel.device).float() + 0.5
    place = (frames.float()[:, None] / chunk * centre - 0.5).clamp(min=0.0)
    before = place.long()
    after = torch.minimum(before + 1, frames[:, None] - 1)
    share = (place - before)[..., None]
    return pick(mel, before) * (1.0 - share) + pick(mel, after) * share


def fusion_views(mel: Tensor, frames: Tensor, chunk: int) -> Tensor:
    """[B, 4, chunk, F] of mel [B, T, F] with `frames` [B] valid, T at least `chunk`.

    The whole clip squeezed, and the middle excerpts of its thirds; a clip that fits four times.
    """
    longer = (frames > chunk)[:, None, None, None]
    places = (frames - chunk + 1).clamp(min=1)[:, None]
    part = torch.arange(3, device=mel.device)
    size = places // 3 + (part < places % 3)
    first = part * (places // 3) + torch.minimum(part, places % 3)
    starts = torch.where(size > 0, first + (size - 1) // 2, 0)
    index = (starts[..., None] + torch.arange(chunk, device=mel.device)).flatten(1)
    excerpts = pick(mel, index).unflatten(1, (3, chunk))
    whole = squeeze(mel, frames.clamp(min=chunk), chunk)[:, None]
    return torch.where(longer, torch.cat([whole, excerpts], 1), mel[:, None, :chunk])
