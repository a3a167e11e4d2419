"""The objectives a config can weigh: name -> function of (Forward, its config)."""

from __future__ import annotations

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from alm_jax.objectives.captioning import captioning
from alm_jax.objectives.contrastive import contrastive
from alm_jax.objectives.forward import Forward
from alm_jax.objectives.reconstruction import reconstruction

Metrics = dict[str, jax.Array]
Objective = Callable[[Forward, ConfigDict], tuple[jax.Array, Metrics]]

OBJECTIVES: dict[str, Objective] = {
    "reconstruction": reconstruction,
    "contrastive": contrastive,
    "captioning": captioning,
}
