"""HTS-AT: a Swin transformer over the spectrogram folded into a square picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alm_jax.interop.torch_modelling.layers import Mlp
from alm_jax.interop.torch_modelling.patches import Patches
from alm_jax.interop.torch_modelling.pictures import (
    fold,
    fusion_views,
    picture_patches,
    stretch,
)
from alm_jax.interop.torch_modelling.windows import WindowGrid


class SwinAttention(nn.Module):
    """Attention within windows, with a learned bias for each head and relative position."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.span = heads, 2 * window - 1
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.relative_bias = nn.Parameter(torch.empty(self.span**2, heads))

    def forward(self, x: Tensor, grid: WindowGrid, moved: bool) -> Tensor:
        layers = (self.query, self.key, self.value)
        q, k, v = (grid.heads(layer(x), self.heads) for layer in layers)
        row, column = (torch.from_numpy(grid.pairs() + self.span // 2).to(x.device)).unbind(-1)
        bias = self.relative_bias[row * self.span + column].permute(2, 0, 1)
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias
        if moved:
            logits = logits + grid.moved_bias().to(x.device)
        return self.out((logits.softmax(-1) @ v).transpose(3, 4).flatten(4).flatten(2, 3))


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, window: int):
        super().__init__()
        self.attention = SwinAttention(width, heads, window)
        self.attention_norm = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, hidden, "gelu")
        self.mlp_norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, grid: WindowGrid, moved: bool) -> Tensor:
        y = self.attention_norm(x)
        y = self.attention(grid.roll(y, -1) if moved else y, grid, moved)
        x = x + (grid.roll(y, 1) if moved else y)
        return x + self.mlp(self.mlp_norm(x))


class SwinStage(nn.Module):
    """Blocks over a square grid [B, side, side, D]; every other one moves its windows."""

    def __init__(self, c: Mapping[str, Any], stage: int, side: int):
        super().__init__()
        width, window = c["dim"] * 2**stage, min(c["window"], side)
        self.grid = WindowGrid.of(side, side, (window,) * 2, (window // 2,) * 2)
        arguments = (width, c["heads"][stage], c["mlp_ratio"] * width, c["eps"], window)
        self.blocks = nn.ModuleList(SwinBlock(*arguments) for _ in range(c["depths"][stage]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.grid.to_windows(x)
        for layer, block in enumerate(self.blocks):
            y = block(y, self.grid, layer % 2 == 1 and any(self.grid.shift))
        return self.grid.from_windows(y)


class PatchMerging(nn.Module):
    """[B, H, W, D] -> [B, H / 2, W / 2, 2 D]."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(four, -1)))


class BatchNorm(nn.Module):
    """Batch norm over the last axis with its running statistics, in training too."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight * torch.rsqrt(self.var + 1e-5)
        return x * factor + (self.bias - self.mean * factor)


class Squeeze(nn.Module):
    """Linear, batch norm, ReLU, linear, batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.down, self.down_norm = nn.Linear(channels, channels // 4), BatchNorm(channels // 4)
        self.up, self.up_norm = nn.Linear(channels // 4, channels), BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_norm(self.up(self.down_norm(self.down(x)).relu()))


class AttentionalFusion(nn.Module):
    """Joins two pictures [B, H, W, C]: x w + y (1 - w), doubled."""

    def __init__(self, channels: int):
        super().__init__()
        self.local, self.whole = Squeeze(channels), Squeeze(channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = x + y
        share = (self.local(both) + self.whole(both.mean((1, 2), keepdim=True))).sigmoid()
        return 2.0 * x * share + 2.0 * y * (1.0 - share)


class Htsat(nn.Module):
    """Whole frames -> hidden states [B, N', D], time outermost."""

    def __init__(self, fields: Mapping[str, Any]):
        super().__init__()
        c = self.c = fields["model"]["audio"]
        mels, stages = fields["frontend"]["num_mels"], len(c["depths"])
        self.parts, self.fused = c["picture"] // mels, c["fusion"] != "none"
        self.width: int = c["dim"] * 2 ** (stages - 1)
        self.input_norm = BatchNorm(mels)
        self.embed = nn.Linear(c["patch"] ** 2, c["dim"])
        self.embed_norm = nn.LayerNorm(c["dim"], c["eps"])
        if self.fused:
            self.excerpt_embed = nn.Linear(4 * 12, c["dim"])
            self.fusion = AttentionalFusion(c["dim"])
        side = c["picture"] // c["patch"]
        for stage in range(stages):
            self.add_module(f"stage{stage}", SwinStage(c, stage, side // 2**stage))
            if stage + 1 < stages:
                self.add_module(f"merge{stage}", PatchMerging(c["dim"] * 2**stage, c["eps"]))
        self.norm = nn.LayerNorm(self.width, c["eps"])
        self.side = side // 2 ** (stages - 1)

    def patches(self, mel: Tensor, frames: Tensor, silence: float) -> Patches:
        place = torch.arange(mel.shape[1], device=mel.device)
        mask = place < frames[:, None]
        mel = torch.where(mask[..., None], mel, 0.0)
        if self.fused:
            chunk = self.c["chunk_frames"]
            mel = fusion_views(mel, frames, chunk).flatten(1, 2)
            place = torch.arange(chunk, device=mel.device).repeat(4)
            fits = torch.arange(4 * chunk, device=mel.device) < chunk
            mask = (place < frames[:, None]) & (fits | (frames > chunk)[:, None])
            mel = torch.where(mask[..., None], mel, 0.0)
        return Patches(mel, place * mask, torch.zeros_like(place) * mask, mask)

    def picture(self, values: Tensor, frames: Tensor) -> Tensor:
        """[B, S, S] normalised and folded of log-mel [B, T, F] with `frames` [B] valid."""
        stretched = stretch(values, frames, self.c["picture"] * self.parts)
        return fold(self.input_norm(stretched), self.parts)

    def embedded(self, patches: Patches) -> Tensor:
        """[B, H, W, C] embedded patches of the pictures."""
        values, mask, patch = patches.values, patches.mask, self.c["patch"]
        if not self.fused:
            return self.embed(picture_patches(self.picture(values, mask.sum(1)), patch, patch))
        values, mask = values.unflatten(1, (4, -1)), mask.unflatten(1, (4, -1))
        frames = mask.sum(2)
        x = self.embed(picture_patches(self.picture(values[:, 0], frames[:, 0]), patch, patch))
        longer = mask[:, -1, -1][:, None, None]
        pictures = [
            self.picture(
                torch.where(longer, values[:, view], values[:, 0]),
                torch.where(longer[:, 0, 0], frames[:, view], frames[:, 0]),
            )
            for view in (1, 2, 3)
        ]
        y = torch.cat([self.excerpt_embed(picture_patches(p, 4, 12)) for p in pictures], 2)
        y = functional.pad(y, (0, 0, 0, x.shape[2] - y.shape[2]))
        return torch.where(longer[..., None], self.fusion(x, y), x)

    def forward(self, patches: Patches) -> Tensor:
        x = self.embed_norm(self.embedded(patches))
        for stage in range(len(self.c["depths"])):
            x = self.get_submodule(f"stage{stage}")(x)
            if stage + 1 < len(self.c["depths"]):
                x = self.get_submodule(f"merge{stage}")(x)
        parts = self.parts if self.side % self.parts == 0 else 1
        return self.norm(x).unflatten(1, (parts, -1)).transpose(2, 3).flatten(1, 3)

    def state_mask(self, patches: Patches) -> Tensor:
        """[B, N'] bool, all True: the picture is full whatever the clip's length."""
        return patches.mask.new_ones(patches.mask.shape[0], self.side**2)
