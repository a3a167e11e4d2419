"""Where a patch is, as a vector added to it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from alm_jax.interop.torch_modelling.patches import PatchShape


def sincos(place: Tensor, width: int) -> Tensor:
    """[..., width] = [sin | cos] of an integer place, base 10000."""
    steps = torch.arange(width // 2, device=place.device, dtype=torch.float32)
    angle = place[..., None] * torch.exp(steps * (-2.0 * math.log(10000.0) / width))
    return torch.cat([angle.sin(), angle.cos()], -1)


class PatchPositions(nn.Module):
    """Fixed sin/cos place in time plus a learned place in frequency."""

    def __init__(self, kind: str, width: int, shape: PatchShape):
        super().__init__()
        self.freq = nn.Parameter(torch.empty(shape.rows, width))

    def forward(self, time: Tensor, freq: Tensor) -> Tensor:
        return sincos(time, self.freq.shape[1]) + self.freq[freq]

    def of_class_token(self) -> Tensor:
        return torch.zeros_like(self.freq[0])


class FixedPositions(nn.Module):
    """Half of the vector is the sin/cos code of one coordinate, half that of the other.

    "sincos_2d_official" is what AudioMAE does: a table made for R rows of C columns, and read by
    tokens that are C rows of R.
    """

    def __init__(self, kind: str, width: int, shape: PatchShape):
        super().__init__()
        self.official, self.width, self.shape = kind == "sincos_2d_official", width, shape

    def forward(self, time: Tensor, freq: Tensor) -> Tensor:
        first, second = freq, time
        if self.official:
            token = time * self.shape.rows + freq
            first, second = token % self.shape.columns, token // self.shape.columns
        return torch.cat([sincos(place, self.width // 2) for place in (first, second)], -1)

    def of_class_token(self) -> Tensor:
        return torch.zeros(self.width)


class TablePositions(nn.Module):
    """A learned table: the class token's row, then the patches', time outermost."""

    def __init__(self, kind: str, width: int, shape: PatchShape):
        super().__init__()
        self.rows = shape.rows
        self.table = nn.Parameter(torch.empty(1 + shape.columns * shape.rows, width))

    def forward(self, time: Tensor, freq: Tensor) -> Tensor:
        return self.table[1 + time * self.rows + freq]

    def of_class_token(self) -> Tensor:
        return self.table[0]


POSITIONS: dict[str, Any] = {
    "sincos_time": PatchPositions,
    "sincos_2d": FixedPositions,
    "sincos_2d_official": FixedPositions,
    "table": TablePositions,
}
