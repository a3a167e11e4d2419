"""Attention, MLP and the transformer stack of every tower and decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
}


class Attention(nn.Module):
    """Multi-head attention of x [B, L, D] to a context [B, K, D]; mask [B, 1, 1 or L, K]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Self-attention, cross-attention where the stack has it, MLP; pre- or post-LayerNorm."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.pre, self.has_cross = c["norm"] == "pre", c["cross"]
        self.attention = Attention(c["width"], c["heads"])
        self.attention_norm = nn.LayerNorm(c["width"], c["eps"])
        if self.has_cross:
            self.cross = Attention(c["width"], c["heads"])
            self.cross_norm = nn.LayerNorm(c["width"], c["eps"])
        self.mlp = Mlp(c["width"], c["mlp_dim"], c["activation"])
        self.mlp_norm = nn.LayerNorm(c["width"], c["eps"])

    def residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        return x + branch(norm(x)) if self.pre else norm(x + branch(x))

    def forward(self, x, mask, context=None, context_mask=None):
        x = self.residual(x, self.attention_norm, lambda h: self.attention(h, h, mask))
        if self.has_cross:
            cross = lambda h: self.cross(h, context, context_mask)  # noqa: E731
            x = self.residual(x, self.cross_norm, cross)
        return self.residual(x, self.mlp_norm, self.mlp)


class Transformer(nn.Module):
    """A stack of blocks; masks are [B, L] and [B, K] bool, True where attention may look."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.causal = c["causal"]
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["depth"]))

    def forward(self, x, mask, context=None, context_mask=None):
        mask = mask[:, None, None, :]
        if self.causal:
            place = torch.arange(x.shape[1], device=x.device)
            mask = mask & (place[:, None] >= place)
        if context_mask is not None:
            context_mask = context_mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask, context, context_mask)
        return x


def with_class_token(mask: Tensor, *, real: bool) -> Tensor:
    """Mask [B, N] of patches with a slot in front."""
    return functional.pad(mask, (1, 0), value=real)
