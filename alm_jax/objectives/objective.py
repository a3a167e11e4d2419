"""What an objective is: values of each example, and a loss of those of the whole batch.

The division is what lets a batch be computed in parts (`alm_jax.accumulation`): a loss may compare
examples, as the contrastive one does, or divide by what the whole batch has of something, and both
need the rows of all parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from alm_jax.models.audio_text import AudioTextModel
from alm_jax.objectives.forward import Forward

Rows = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss in two steps; called with (Forward, config) it takes both.

    Attributes:
      rows: of (Forward, its config), what the loss has to know of each example. The first axis of
        every array is the example, or the views of the examples, those of one side by side. A row
        depends on no other example.
      loss: of (rows of the whole batch, model, its config), the loss and metrics, all scalars. Of
        the model it reads parameters such as the temperature; it runs no tower.
    """

    rows: Callable[[Forward, ConfigDict], Rows]
    loss: Callable[[Rows, AudioTextModel, ConfigDict], tuple[jax.Array, Metrics]]

    def __call__(self, forward: Forward, config: ConfigDict) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a batch that is computed at once."""
        return self.loss(self.rows(forward, config), forward.model, config)
