"""Decoders of masked autoencoders: visible states -> pixels of the dropped patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alm_jax.interop.torch_modelling.layers import Transformer, with_class_token
from alm_jax.interop.torch_modelling.patches import Patches, PatchShape
from alm_jax.interop.torch_modelling.positions import POSITIONS


class ConcatenatingDecoder(nn.Module):
    """Cacophony's: a learned vector for each dropped patch follows the visible states."""

    def __init__(self, c: Mapping[str, Any], shape: PatchShape, encoder_width: int):
        super().__init__()
        self.embed = nn.Linear(encoder_width, c["width"])
        self.positions = POSITIONS[c["positions"]](c["positions"], c["width"], shape)
        self.restore = nn.Parameter(torch.empty(c["width"]))
        self.transformer = Transformer(c)
        self.norm = nn.LayerNorm(c["width"], c["eps"])
        self.predict = nn.Linear(c["width"], shape.pixels)

    def forward(self, hidden: Tensor, visible: Patches, dropped: Patches) -> Tensor:
        slots = visible.mask.shape[1]
        states = self.embed(hidden[:, -slots:]) + self.positions(visible.time, visible.freq)
        restore = self.restore + self.positions(dropped.time, dropped.freq)
        mask = torch.cat([visible.mask, dropped.mask], 1)
        x = self.transformer(torch.cat([states, restore], 1), mask)
        return self.predict(self.norm(x[:, slots:]))


class VitDecoder(nn.Module):
    """AudioMAE's plain one: global attention over class token, visible and mask tokens."""

    def __init__(self, c: Mapping[str, Any], shape: PatchShape, encoder_width: int):
        super().__init__()
        self.embed = nn.Linear(encoder_width, c["width"])
        self.positions = POSITIONS[c["positions"]](c["positions"], c["width"], shape)
        self.mask_token = nn.Parameter(torch.empty(c["width"]))
        self.transformer = Transformer(c)
        self.norm = nn.LayerNorm(c["width"], c["eps"])
        self.predict = nn.Linear(c["width"], shape.pixels)

    def forward(self, hidden: Tensor, visible: Patches, dropped: Patches) -> Tensor:
        places = self.positions(visible.time, visible.freq)
        mask = torch.cat([visible.mask, dropped.mask], 1)
        if hidden.shape[1] > places.shape[1]:
            place = self.positions.of_class_token().to(hidden.device)
            places = torch.cat([place.expand(places.shape[0], 1, -1), places], 1)
            mask = with_class_token(mask, real=True)
        tokens = self.mask_token + self.positions(dropped.time, dropped.freq)
        x = self.transformer(torch.cat([self.embed(hidden) + places, tokens], 1), mask)
        return self.predict(self.norm(x[:, hidden.shape[1] :]))
