"""What the train loop measures on a schedule: the losses and, with a text side, retrieval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alm_jax.api import Model
from alm_jax.evaluation_data import Clips
from alm_jax.evaluation_suite import embed_clips, retrieval_results
from alm_jax.train_state import Setup
from alm_jax.train_step import make_eval_step
from input_pipeline.loader import eval_batches
from input_pipeline.text import Tokenizer

Evaluator = Callable[[Any], dict[str, float]]


def make_evaluator(config: ConfigDict, setup: Setup, tokenizer: Tokenizer) -> Evaluator | None:
    """A function of the parameters that gives scalars named `eval/<split>/...`.

    Returns None where `config.data.eval_split` is empty. Losses are means over the whole batches
    of the split (one of all its clips, if they are fewer than `config.eval.batch_size`), with the
    masking of training, drawn once, and without dropout or augmentation.
    """
    split = config.data.eval_split
    if not split:
        return None
    losses = jax.jit(make_eval_step(config, setup))
    clips = Clips.read(config.data.dir, split)
    batch_size = min(config.eval.batch_size, len(clips))
    model: Model | None = None

    def evaluator(params: Any) -> dict[str, float]:
        nonlocal model
        totals: dict[str, list[float]] = {}
        for batch in eval_batches(config.data, tokenizer, split, batch_size):
            if batch.pop("_mask").all():
                for name, value in losses(params, batch).items():
                    totals.setdefault(f"eval/{split}/{name}", []).append(float(value))
        scalars = {name: float(np.mean(values)) for name, values in totals.items()}
        if config.model.text is None:
            return scalars
        if model is None:
            model = Model(config, params, tokenizer, f"the run {config.name!r}")
        else:
            model = model.with_params(params)
        rows = retrieval_results(
            embed_clips(model, clips), model.embed_text(clips.captions), clips, f"eval/{split}"
        )
        return scalars | {name: row["value"] for name, row in rows.items()}

    return evaluator
