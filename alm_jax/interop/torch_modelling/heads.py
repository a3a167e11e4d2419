"""From states to one vector: poolers, projections, classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionPooler(nn.Module):
    """Hidden states [B, N, D] with mask [B, N] -> [B, D] by a learned query."""

    def __init__(self, c: Mapping[str, Any], width: int):
        super().__init__()
        self.heads: int = c["heads"]
        self.query = nn.Parameter(torch.empty(1, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width) if c["output"] else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query.expand(x.shape[0], 1, -1), self.key(x), self.value(x))
        )
        mask = mask[:, None, None, :]
        return self.out(functional.scaled_dot_product_attention(q, k, v, mask).flatten(1))


class MeanPooler(nn.Module):
    """The mean of the valid states."""

    def __init__(self, c: Mapping[str, Any], width: int):
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class FirstPooler(nn.Module):
    """The first state."""

    def __init__(self, c: Mapping[str, Any], width: int):
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x[:, 0]


class FirstTanhPooler(nn.Module):
    """Linear and tanh on the first state: BERT's and RoBERTa's."""

    def __init__(self, c: Mapping[str, Any], width: int):
        super().__init__()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(x[:, 0]).tanh()


POOLERS: dict[str, Any] = {
    "attention": AttentionPooler,
    "mean": MeanPooler,
    "first": FirstPooler,
    "first_tanh": FirstTanhPooler,
}


class MlpProjection(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, width: int, joint: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, joint), nn.Linear(joint, joint)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


PROJECTIONS: dict[str, Any] = {"linear": nn.Linear, "mlp": MlpProjection}


class Classifier(nn.Module):
    """Hidden states [B, N', D] with mask [B, N'] -> logits [B, Y]."""

    def __init__(self, c: Mapping[str, Any], width: int):
        super().__init__()
        self.pool = POOLERS[c.get("pool", "mean")](c, width)
        self.norm = nn.LayerNorm(width, c.get("eps", 1e-6))
        self.predict = nn.Linear(width, c["classes"])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.predict(self.norm(self.pool(x, mask)))


def normalize(x: Tensor) -> Tensor:
    """Rows of x [B, J] at unit norm."""
    return x / torch.linalg.vector_norm(x + 1e-10, dim=-1, keepdim=True)
