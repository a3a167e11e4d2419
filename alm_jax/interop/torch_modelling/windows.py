"""Grids of patches in windows, for attention within them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class WindowGrid(NamedTuple):
    """A grid of columns x rows patches, whole windows, kept window by window.

    Groups of rows come first (G), within them windows of `window` columns and rows, K patches each,
    column by column. Every other layer of a stack moves its windows by `shift`.
    """

    columns: int
    rows: int
    window: tuple[int, int]
    shift: tuple[int, int]

    @classmethod
    def of(
        cls, columns: int, rows: int, window: tuple[int, int], shift: tuple[int, int]
    ) -> WindowGrid:
        """The grid that holds columns x rows patches, completed to whole windows."""
        wide, high = min(columns, window[0]), min(rows, window[1])
        columns, rows = -(-columns // wide) * wide, -(-rows // high) * high
        moved = shift[0] * (columns > wide), shift[1] * (rows > high)
        return cls(columns, rows, (wide, high), moved)

    def to_windows(self, x: Tensor) -> Tensor:
        """[B, C', R', D] -> [B, G, W * K, D]; a smaller grid repeats its last column and row."""
        x = x[:, torch.arange(self.columns, device=x.device).clamp(max=x.shape[1] - 1)]
        x = x[:, :, torch.arange(self.rows, device=x.device).clamp(max=x.shape[2] - 1)]
        return x.unflatten(2, (-1, self.window[1])).transpose(1, 2).flatten(2, 3)

    def from_windows(self, x: Tensor) -> Tensor:
        """[B, G, W * K, D] -> [B, C, R, D]."""
        return x.unflatten(2, (self.columns, self.window[1])).transpose(1, 2).flatten(2, 3)

    def roll(self, x: Tensor, sign: int) -> Tensor:
        """Moves [B, G, W * K, D] by the shift, towards the start with sign -1."""
        # One gather: steps through the grid and back would be a quarter of a traced graph.
        moved = (sign * self.shift[0], sign * self.shift[1])
        groups = np.arange(self.columns * self.rows).reshape(-1, self.columns, self.window[1])
        grid = groups.transpose(1, 0, 2).reshape(self.columns, self.rows)
        groups = np.roll(grid, moved, (0, 1)).reshape(self.columns, -1, self.window[1])
        order = torch.from_numpy(groups.transpose(1, 0, 2).flatten()).to(x.device)
        return x.flatten(1, 2).index_select(1, order).unflatten(1, x.shape[1:3])

    def moved_bias(self) -> Tensor:
        """[G, W, 1, K, K]: -100 between patches that a shift has made neighbours."""
        region = np.zeros((self.columns, self.rows), np.int32)
        for axis in (0, 1):
            size, window, shift = region.shape[axis], self.window[axis], self.shift[axis]
            place = np.arange(size)
            part = (place >= size - window).astype(np.int32) + (place >= size - shift)
            shape = (-1, 1) if axis == 0 else (1, -1)
            region += 3**axis * (part * bool(shift)).reshape(shape)
        groups = region.reshape(self.columns, -1, self.window[1]).transpose(1, 0, 2)
        windows = groups.reshape(len(groups), -1, self.window[0] * self.window[1])
        differ = windows[..., :, None] != windows[..., None, :]
        return torch.from_numpy(np.where(differ, np.float32(-100.0), np.float32(0.0))[:, :, None])

    def pairs(self) -> np.ndarray:
        """[K, K, 2] int: columns and rows from one patch of a window to another."""
        places = np.stack(np.meshgrid(*map(np.arange, self.window), indexing="ij"), -1)
        places = places.reshape(-1, 2)
        return places[:, None] - places[None]

    def heads(self, x: Tensor, count: int) -> Tensor:
        """[B, G, W * K, D] -> [B, G, W, H, K, D / H]."""
        patches = self.window[0] * self.window[1]
        return x.unflatten(-1, (count, -1)).unflatten(2, (-1, patches)).transpose(3, 4)
