"""The transformer written again in float64 NumPy, from the papers' formulas.

Shapes: B batch, L query length, K key length, D width, H heads, E head size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + special.erf(x / np.sqrt(2))),
    "silu": lambda x: x * special.expit(x),
}


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def dense(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ params["kernel"].astype(np.float64) + params["bias"]


def layer_norm(params: dict[str, Any], x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * params[
        "scale"
    ] + np.asarray(params["bias"], np.float64)


def attention(
    params: dict[str, Any],
    x: np.ndarray,
    heads: int,
    context: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """[B, L, D] -> [B, L, D], one head after another; mask [B, 1, L, K]."""
    context = x if context is None else context
    q, k, v = (
        dense(params["query"], x),
        dense(params["key"], context),
        dense(params["value"], context),
    )
    size = x.shape[-1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(size)
        if mask is not None:
            logits = np.where(mask[:, 0], logits, -np.inf)
        parts.append(softmax(logits) @ v[..., part])
    return dense(params["out"], np.concatenate(parts, axis=-1))


def transformer(
    blocks: dict[str, Any],
    x: np.ndarray,
    *,
    heads: int,
    norm: str,
    eps: float,
    activation: str,
    mask: np.ndarray,
    context: np.ndarray | None = None,
    context_mask: np.ndarray | None = None,
    causal: bool = False,
) -> np.ndarray:
    """Layers applied in turn; `blocks` holds their parameters on a leading axis."""

    def residual(x, norm_params, branch):
        if norm == "pre":
            return x + branch(layer_norm(norm_params, x, eps))
        return layer_norm(norm_params, x + branch(x), eps)

    def layer_of(tree, index):
        if isinstance(tree, dict):
            return {name: layer_of(child, index) for name, child in tree.items()}
        return tree[index]

    x = x.astype(np.float64)
    length = x.shape[1]
    self_mask = np.broadcast_to(mask[:, None, None, :], (len(x), 1, length, length))
    if causal:
        self_mask = self_mask & np.tril(np.ones((length, length), bool))
    depth = blocks["mlp"]["up"]["bias"].shape[0]
    for p in (layer_of(blocks, index) for index in range(depth)):
        x = residual(
            x,
            p["attention_norm"],
            lambda h, p=p: attention(p["attention"], h, heads, None, self_mask),
        )
        if context is not None:
            keys = np.broadcast_to(
                context_mask[:, None, None, :], (len(x), 1, length, context.shape[1])
            )
            x = residual(
                x,
                p["cross_norm"],
                lambda h, p=p, m=keys: attention(p["cross"], h, heads, context, m),
            )
        x = residual(
            x,
            p["mlp_norm"],
            lambda h, p=p: dense(
                p["mlp"]["down"], ACTIVATIONS[activation](dense(p["mlp"]["up"], h))
            ),
        )
    return x
