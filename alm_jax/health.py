"""What a loss would be if nothing was learned, and a warning when it stays there.

Every objective logs, beside its loss, what a model that ignores its input would reach. Now and then
one line puts them side by side, for whoever watches a run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

log = logging.getLogger("alm_jax")

# A loss above this share of its reference is taken to be at it: what noise is left after averaging.
AT_CHANCE = 0.98
# Trained towers have mean cosines well below; one direction for all clips has 1.
COLLAPSED = 0.98


class Reference(NamedTuple):
    """A loss and what it would be if nothing was learned.

    Attributes:
      loss: name of the metric.
      chance: name of the metric that holds the reference.
      means: what a model that gives the reference does.
      check: what to look at when the loss stays there.
    """

    loss: str
    chance: str
    means: str
    check: str


REFERENCES = (
    Reference(
        "reconstruction_loss",
        "reconstruction_predict_mean",
        "predicting the mean",
        "whether optim.lr is too low or too high, and the sound not silent (alm inspect)",
    ),
    Reference(
        "contrastive_loss",
        "contrastive_chance",
        "chance",
        "whether captions belong to their clips (alm inspect), whether optim.lr is too high, and "
        "whether batch_size is large enough",
    ),
    Reference(
        "captioning_loss",
        "captioning_unigram",
        "frequencies of tokens",
        "whether captions belong to their clips (alm inspect) and optim.lr is not too low",
    ),
)
# (metric, how it is called) of the rest of the line.
OTHERS = (
    ("captioning_uniform", "captioning_loss with all tokens alike"),
    ("logit_scale", "logit scale"),
    ("same_caption_share", "share of clips with another's caption"),
    ("audio_cosine", "mean cosine of audio embeddings"),
    ("audio_rank", "their effective rank"),
    ("text_cosine", "mean cosine of text embeddings"),
    ("text_rank", "their effective rank"),
    ("packing_lost", "share of patches without room (packing.share)"),
)


class Health:
    """Collects the metrics of a run, and now and then says in a line how it is doing."""

    def __init__(self, config: ConfigDict, first_step: int):
        """Begins after `first_step`; says a line every `config.train.health_every_steps`."""
        self._every = config.train.health_every_steps
        self._warmup = config.optim.warmup_steps
        self._said = first_step
        self._new = True
        self._sums: dict[str, float] = {}
        self._count = 0

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step, named `train/...`; logs a line where one is due."""
        if not self._every:
            return
        values = {name.removeprefix("train/"): float(value) for name, value in metrics.items()}
        if self._new:
            self._new = False
            log.info("%s", summary(step, values))
            return
        if all(math.isfinite(value) for value in values.values()):
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._count += 1
        if step - self._said < self._every:
            return
        log.info("%s", summary(step, values))
        if self._said >= self._warmup and self._count:
            means = {name: value / self._count for name, value in self._sums.items()}
            for warning in warnings(means):
                log.info("warning: steps %d to %d: %s", self._said + 1, step, warning)
        self._said, self._sums, self._count = step, {}, 0


def summary(step: int, values: Mapping[str, float]) -> str:
    """One line: losses beside what they would be at chance, spread of embeddings, temperature."""
    parts = [
        f"{reference.loss} {values[reference.loss]:.3f} "
        f"({reference.means}: {values[reference.chance]:.3f})"
        for reference in REFERENCES
        if reference.loss in values
    ]
    parts += [f"{label} {values[name]:.3g}" for name, label in OTHERS if name in values]
    return f"step {step}: " + "; ".join(parts or [f"loss {values['loss']:.3f}"])


def warnings(means: Mapping[str, float]) -> list[str]:
    """What is wrong, one line each, with mean metrics of many steps."""
    found = [
        f"{reference.loss} {means[reference.loss]:.3f} is where {reference.means} puts it "
        f"({means[reference.chance]:.3f}). Check {reference.check}"
        for reference in REFERENCES
        if reference.loss in means and means[reference.loss] > AT_CHANCE * means[reference.chance]
    ]
    found += [
        f"the {side} embeddings are nearly all the same (mean cosine "
        f"{means[f'{side}_cosine']:.3f}, effective rank {means[f'{side}_rank']:.1f}). Check "
        f"whether optim.lr is too high, and the {side} input not the same for all clips"
        for side in ("audio", "text")
        if means.get(f"{side}_cosine", 0.0) > COLLAPSED
    ]
    if means.get("packing_lost", 0.0) > 0.0:
        found.append(
            f"{means['packing_lost']:.2%} of the patches found no room in the packed rows. Raise "
            "packing.share"
        )
    return found
