"""Tiny AudioMAEs with random parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alm_jax.config import load_config
from alm_jax.train_state import model_graph
from tests import random_params

_AUDIO = [
    *(f"model.audio.{field}" for field in ("width=32", "depth=2", "heads=2", "mlp_dim=64")),
    *("patches.frames=80", "data.max_seconds=1.0", "eval.bucket_seconds=(1.0,)"),
]
# Deep enough that an export to ONNX copies layers.
_DECODER = [f"model.mae_decoder.{field}" for field in ("width=32", "depth=6", "heads=2")]
MODELS = {
    # 5 x 8 patches: windows of 4 x 4 do not divide the columns.
    "audiomae": [*_DECODER, "model.mae_decoder.mlp_dim=64", "model.mae_decoder.bias_hidden=8"],
    "audiomae:plain_decoder": [*_DECODER, "model.mae_decoder.mlp_dim=64"],
    "audiomae:finetune,overlap": ["model.classifier.classes=7", "model.audio.positions=table"],
}


def audiomae(spec: str) -> tuple[ConfigDict, dict[str, Any]]:
    """Config and parameters of one of `MODELS`."""
    config = load_config(spec, [*_AUDIO, *MODELS[spec]])
    params = random_params.draw(model_graph(config, 0)[1])
    if spec == "audiomae":  # temperatures near zero would multiply rounding by 100
        attention = params["mae_decoder"]["transformer"]["blocks"]["attention"]
        attention["tau"] = np.abs(attention["tau"]) + 0.5
    return config, params
