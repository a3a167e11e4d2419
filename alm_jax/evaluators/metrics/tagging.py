"""Zero-shot tagging: clips with any number of classes, scored by mean average precision.

Each class ranks the clips by the cosine with its prompt; no threshold is involved. FSD50K and
AudioSet papers report the mean over classes ("macro"). Chance is the expectation of a random
ranking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.class_precision import class_precision
from alm_jax.evaluators.metrics.ranking import TIE_TOLERANCE, unit_grid
from alm_jax.evaluators.results import with_interval

PROTOCOL = (
    "tagging-v1: clips ranked by cosine with each class prompt, ties within {tolerance:g} lose"
)


def tagging_metrics(
    audio: ArrayLike,
    class_text: ArrayLike,
    labels: Sequence[Sequence[int]],
    *,
    prompts: Sequence[str],
    prefix: str,
    tie_tolerance: float = TIE_TOLERANCE,
) -> dict[str, dict[str, Any]]:
    """Mean average precision over classes.

    Args:
      audio: embeddings of clips [n, D].
      class_text: embeddings of the classes [c, D], one each (see `zero_shot.ensemble_prompts`).
      labels: rows of `class_text` that each clip has, any number of them.
      prompts: the templates that were used, reported beside the numbers.
      prefix: names start with it.
      tie_tolerance: cosine difference up to which two clips are tied.

    Returns:
      Rows `{prefix}/mAP` (mean over the classes that have a clip) and `{prefix}/mAP[absent=0]`
      (over all classes, one without a clip counting as 0).

    Raises:
      UserError: no class has a clip.
    """
    clips, classes = unit_grid(audio, "audio"), unit_grid(class_text, "class prompt")
    clip = np.repeat(np.arange(len(clips)), [len(own) for own in labels])
    label = np.asarray([row for own in labels for row in own], np.int64)
    if not len(label):
        raise UserError("no clip has a label: there is nothing to rank for")
    found = class_precision(clips, classes, clip, label, tie_tolerance=tie_tolerance)
    absent = len(classes) - len(found.present)
    share = len(found.present) / len(classes)
    common: dict[str, Any] = {
        "unit": "fraction",
        "n_clips": len(clips),
        "n_classes": len(classes),
        "prompt": " | ".join(prompts),
        "protocol": PROTOCOL.format(tolerance=tie_tolerance),
    }
    ends = found.interval
    scaled = None if ends is None else ends._replace(low=ends.low * share, high=ends.high * share)
    return {
        f"{prefix}/mAP": {
            "value": found.mean,
            "chance": found.chance,
            **common,
            "convention": "macro; classes without a clip are left out "
            f"({absent} of {len(classes)} here)",
            **with_interval(ends),
        },
        f"{prefix}/mAP[absent=0]": {
            "value": math.fsum(found.values) / len(classes),
            "chance": found.chance * share,
            **common,
            "convention": f"macro; a class without a clip counts as 0 ({absent} here)",
            **with_interval(scaled),
        },
    }
