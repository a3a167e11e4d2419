"""AudioMAE's window decoder over the whole grid of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alm_jax.interop.torch_modelling.layers import Mlp
from alm_jax.interop.torch_modelling.patches import Patches, PatchShape
from alm_jax.interop.torch_modelling.positions import POSITIONS
from alm_jax.interop.torch_modelling.windows import WindowGrid


class WindowAttention(nn.Module):
    """Scaled cosine attention within windows; a small network makes its position bias."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.heads, width = c["heads"], c["width"]
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.tau = nn.Parameter(torch.empty(self.heads))
        self.bias_up = nn.Linear(2, c["bias_hidden"])
        self.bias_down = nn.Linear(c["bias_hidden"], self.heads)

    def forward(self, x: Tensor, grid: WindowGrid, moved: bool) -> Tensor:
        layers = (self.query, self.key, self.value)
        q, k, v = (grid.heads(layer(x), self.heads) for layer in layers)
        squares = q.square().sum(-1)[..., :, None] * k.square().sum(-1)[..., None, :]
        logits = q @ k.transpose(-1, -2) * squares.clamp(min=1e-12).rsqrt()
        logits = logits / self.tau.clamp(min=0.01)[:, None, None]
        d = grid.pairs().astype(np.float32)
        distances = torch.from_numpy(np.sign(d) * np.log1p(np.abs(d))).to(x.device)
        logits = logits + self.bias_down(self.bias_up(distances).relu()).permute(2, 0, 1)
        if moved:
            logits = logits + grid.moved_bias().to(x.device)
        return self.out((logits.softmax(-1) @ v).transpose(3, 4).flatten(4).flatten(2, 3))


class WindowBlock(nn.Module):
    """x + norm(attention(x)), then x + norm(MLP(x))."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.attention = WindowAttention(c)
        self.attention_norm = nn.LayerNorm(c["width"], c["eps"])
        self.mlp = Mlp(c["width"], c["mlp_dim"], c["activation"])
        self.mlp_norm = nn.LayerNorm(c["width"], c["eps"])

    def forward(self, x: Tensor, grid: WindowGrid, moved: bool) -> Tensor:
        y = grid.roll(x, -1) if moved else x
        y = self.attention(y, grid, moved)
        x = x + self.attention_norm(grid.roll(y, 1) if moved else y)
        return x + self.mlp_norm(self.mlp(x))


class WindowTransformer(nn.Module):
    """A stack over grids [B, C, R, D]; every other layer moves its windows."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.window, self.shift = tuple(c["window"]), tuple(c["shift"])
        self.blocks = nn.ModuleList(WindowBlock(c) for _ in range(c["depth"]))

    def forward(self, x: Tensor) -> Tensor:
        columns, rows = x.shape[1:3]
        grid = WindowGrid.of(columns, rows, self.window, self.shift)
        y = grid.to_windows(x)
        for layer, block in enumerate(self.blocks):
            y = block(y, grid, layer % 2 == 1 and any(grid.shift))
        return grid.from_windows(y)[:, :columns, :rows]


class SwinDecoder(nn.Module):
    """Places that no visible patch has hold the mask token; without class token."""

    def __init__(self, c: Mapping[str, Any], shape: PatchShape, encoder_width: int):
        super().__init__()
        self.shape = shape
        self.embed = nn.Linear(encoder_width, c["width"])
        self.positions = POSITIONS[c["positions"]](c["positions"], c["width"], shape)
        self.mask_token = nn.Parameter(torch.empty(c["width"]))
        self.transformer = WindowTransformer(c)
        self.norm = nn.LayerNorm(c["width"], c["eps"])
        self.predict = nn.Linear(c["width"], shape.pixels)

    def forward(self, hidden: Tensor, visible: Patches, dropped: Patches) -> Tensor:
        rows, places = self.shape.rows, self.shape.columns * self.shape.rows
        states = self.embed(hidden[:, -visible.mask.shape[1] :])
        # Padding slots go into one more place, which is cut off.
        place = torch.where(visible.mask, visible.time * rows + visible.freq, places)
        x = self.mask_token.expand(states.shape[0], places + 1, -1)
        x = x.scatter(1, place[..., None].expand_as(states), states)[:, :places]
        every = torch.arange(places, device=x.device)
        x = (x + self.positions(every // rows, every % rows)).unflatten(1, (-1, rows))
        x = self.transformer(x).flatten(1, 2)
        chosen = (dropped.time * rows + dropped.freq)[..., None].expand(-1, -1, x.shape[-1])
        return self.predict(self.norm(x.gather(1, chosen)))
