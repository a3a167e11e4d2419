"""The objectives a config can weigh, by name."""

from __future__ import annotations

from alm_jax.objectives.captioning import captioning
from alm_jax.objectives.classification import classification
from alm_jax.objectives.contrastive import contrastive
from alm_jax.objectives.objective import Objective
from alm_jax.objectives.reconstruction import reconstruction

OBJECTIVES: dict[str, Objective] = {
    "reconstruction": reconstruction,
    "contrastive": contrastive,
    "captioning": captioning,
    "classification": classification,
}
