"""The quickstart's two stages, shrunk by overrides until a step takes milliseconds."""

from __future__ import annotations

from ml_collections import ConfigDict

from alm_jax.config import load_config

COMMON = [
    "data.max_seconds=1.0",
    "data.batch_size=8",
    "optim.warmup_steps=2",
    "tokenizer.vocab_size=400",
]


def _size(part: str, depth: int) -> list[str]:
    fields = dict(width=32, depth=depth, heads=2, mlp_dim=64, unroll=1)
    return [f"model.{part}.{name}={value}" for name, value in fields.items()]


def stage1(*overrides: str) -> ConfigDict:
    """Stage 1: quickstart:mae."""
    sizes = _size("audio", 2) + _size("mae_decoder", 1)
    return load_config("quickstart:mae", [*COMMON, *sizes, *overrides])


def stage2(*overrides: str) -> ConfigDict:
    """Stage 2: quickstart."""
    sizes = _size("audio", 2) + _size("text", 2) + _size("caption_decoder", 1)
    pools = ["model.audio_pool.heads=2", "model.embed_dim=24"]
    return load_config("quickstart", [*COMMON, *sizes, *pools, *overrides])
