"""Official parameter trees of tiny models, drawn by the golden rule."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from rule import flax_weight, torch_weight  # noqa: E402

# What no tensor of the tiny Cacophony tells.
CACOPHONY_HEADS = [
    f"--config.model.{part}.heads=4" for part in ("audio_pool", "text", "caption_decoder")
]


def cacophony(name: str) -> dict[str, np.ndarray]:
    """Slash-joined leaves of `cacophony_mae_tiny` or `cacophony_caco_tiny`."""
    trees = json.loads((GOLDEN / "cacophony.json").read_text())
    return {key: flax_weight(key, shape) for key, shape in trees[name]["params"]}


def nested(flat: dict[str, np.ndarray]) -> dict:
    """Nested dicts of slash-joined names."""
    tree: dict = {}
    for name, array in flat.items():
        node = tree
        *parents, last = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return tree


def text_tower(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """State dict and config.json of `text_roberta_tiny` or `text_bert_tiny`."""
    described = json.loads((GOLDEN / "text_towers.json").read_text())[name]
    state = {key: torch_weight(key, tuple(shape)) for key, shape in described["params"]}
    return state, described["config"]
