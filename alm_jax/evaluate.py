"""Evaluates parameters on a split: retrieval on the clips' captions, and the training losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alm_jax.evaluators.retrieval import distinct_captions, retrieval_metrics
from alm_jax.inference import Inference
from alm_jax.train_state import Setup
from alm_jax.train_step import make_eval_step
from input_pipeline.loader import eval_batches
from input_pipeline.sources import open_split
from input_pipeline.text import Tokenizer


def embed_clips(
    inference: Inference, params: Any, config: ConfigDict, tokenizer: Tokenizer, split: str
) -> np.ndarray:
    """Unit-norm embeddings [n, J] float32 of the clips of a split, in the split's order."""
    rows: dict[int, np.ndarray] = {}
    for batch in eval_batches(
        config.data,
        tokenizer,
        split,
        config.eval.batch_size,
        bucket_seconds=tuple(config.eval.bucket_seconds),
    ):
        embeddings = inference.embed_audio(params, batch["audio"], batch["audio_length"])
        for example, row, real in zip(
            batch["example_id"], np.asarray(embeddings), batch["_mask"], strict=True
        ):
            if real:
                rows[int(example)] = row
    return np.stack([rows[i] for i in range(len(rows))])


def embed_captions(
    inference: Inference,
    params: Any,
    config: ConfigDict,
    tokenizer: Tokenizer,
    captions: list[str],
) -> np.ndarray:
    """Unit-norm embeddings [m, J] float32 of captions."""
    size = config.eval.batch_size
    out = []
    for first in range(0, len(captions), size):
        part = captions[first : first + size]
        padded = part + [""] * (size - len(part))
        text, mask = tokenizer.encode_batch(padded, config.data.max_text_length)
        out.append(np.asarray(inference.embed_text(params, text, mask))[: len(part)])
    return np.concatenate(out)


def retrieval(
    inference: Inference, params: Any, config: ConfigDict, tokenizer: Tokenizer, split: str
) -> dict[str, Any]:
    """Both directions against the distinct captions of the split."""
    captions, of_clip = distinct_captions(list(open_split(config.data.dir, split).captions()))
    return retrieval_metrics(
        embed_clips(inference, params, config, tokenizer, split),
        embed_captions(inference, params, config, tokenizer, captions),
        of_clip,
    )


def make_evaluator(
    config: ConfigDict, setup: Setup, tokenizer: Tokenizer
) -> Callable[[Any], dict[str, float]] | None:
    """What the train loop runs on schedule: losses and, with a text side, retrieval."""
    split = config.data.eval_split
    if not split:
        return None
    inference = Inference(config, setup.graph)
    losses = jax.jit(make_eval_step(config, setup))

    def evaluator(params: Any) -> dict[str, float]:
        totals: dict[str, list[float]] = {}
        for batch in eval_batches(config.data, tokenizer, split, config.eval.batch_size):
            real = batch.pop("_mask")
            if real.all():
                for name, value in losses(params, batch).items():
                    totals.setdefault(f"eval/{split}/{name}", []).append(float(value))
        scalars = {name: float(np.mean(values)) for name, values in totals.items()}
        if config.model.text is not None:
            found = retrieval(inference, params, config, tokenizer, split)
            for name, value in found.items():
                scalars[f"eval/{split}/{name}"] = value["value"]
        return scalars

    return evaluator
