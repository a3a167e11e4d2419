"""The text tower and the caption decoder that continues it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alm_jax.interop.torch_modelling.layers import Transformer


class TextRoberta(nn.Module):
    """Token ids [B, L] with mask [B, L] -> hidden states [B, L, D]."""

    def __init__(self, c: Mapping[str, Any], vocab_size: int, max_positions: int):
        super().__init__()
        self.offset: int = c.get("position_offset", 0)
        self.words = nn.Parameter(torch.empty(vocab_size, c["width"]))
        self.positions = nn.Parameter(torch.empty(max_positions, c["width"]))
        self.token_type = nn.Parameter(torch.empty(1, c["width"]))
        self.embed_norm = nn.LayerNorm(c["width"], c["eps"])
        self.transformer = Transformer(c)
        pre = c["norm"] == "pre"
        self.final_norm = nn.LayerNorm(c["width"], c["eps"]) if pre else nn.Identity()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        if self.offset:  # padding takes the row before the first token's
            place = self.offset - 1 + mask.long().cumsum(1) * mask
        x = self.words[tokens] + self.positions[place] + self.token_type
        return self.final_norm(self.transformer(self.embed_norm(x), mask))


class CaptionDecoder(nn.Module):
    """Text states [B, L, D] that look at audio states -> next-token logits [B, L, V]."""

    def __init__(self, c: Mapping[str, Any], audio_width: int, vocab_size: int):
        super().__init__()
        width = c["width"]
        same = audio_width == width
        self.context = nn.Identity() if same else nn.Linear(audio_width, width)
        self.transformer = Transformer(c)
        self.final_norm = nn.LayerNorm(width, c["eps"]) if c["norm"] == "pre" else nn.Identity()
        self.predict = nn.Linear(width, vocab_size)

    def forward(self, text: Tensor, mask: Tensor, audio: Tensor, audio_mask: Tensor) -> Tensor:
        x = self.transformer(text, mask, self.context(audio), audio_mask)
        return self.predict(self.final_norm(x))
