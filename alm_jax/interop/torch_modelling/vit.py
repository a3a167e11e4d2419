"""The ViT audio tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alm_jax.interop.torch_modelling.layers import Transformer, with_class_token
from alm_jax.interop.torch_modelling.patches import Patches, cut, patch_shape
from alm_jax.interop.torch_modelling.positions import POSITIONS


class AudioViT(nn.Module):
    """Patches -> hidden states [B, N', D]: a class token's, if there is one, then the patches'."""

    def __init__(self, fields: Mapping[str, Any]):
        super().__init__()
        c = fields["model"]["audio"]
        self.fields = fields["patches"]
        self.width: int = c["width"]
        shape = patch_shape(self.fields, fields["frontend"]["num_mels"])
        self.embed = nn.Linear(shape.pixels, self.width)
        self.positions = POSITIONS[c["positions"]](c["positions"], self.width, shape)
        self.transformer = Transformer(c)
        self.norm = nn.LayerNorm(self.width, c["eps"]) if c["final_norm"] else nn.Identity()
        self.class_token = nn.Parameter(torch.empty(self.width)) if c["class_token"] else None

    def patches(self, mel: Tensor, frames: Tensor, silence: float) -> Patches:
        return cut(mel, frames, self.fields, silence)

    def forward(self, patches: Patches) -> Tensor:
        x = self.embed(patches.values) + self.positions(patches.time, patches.freq)
        mask = patches.mask
        if self.class_token is not None:
            token = self.class_token + self.positions.of_class_token().to(x.device)
            x = torch.cat([token.expand(x.shape[0], 1, -1), x], 1)
            mask = with_class_token(mask, real=True)
        return self.norm(self.transformer(x, mask))

    def state_mask(self, patches: Patches) -> Tensor:
        """[B, N'] bool, True for the states of patches; a class token's is no part of the clip."""
        if self.class_token is None:
            return patches.mask
        return with_class_token(patches.mask, real=False)
