"""What the train loop measures on a schedule: the losses and, with a text side, retrieval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.suite import embed_clips, retrieval_results
from alm_jax.inference.model import Model
from alm_jax.parallel.distributed import row_share
from alm_jax.parallel.mesh import batch_sharding, replicated
from alm_jax.train_state import Setup
from alm_jax.train_step import make_eval_step
from input_pipeline.loader import eval_batches
from input_pipeline.text import Tokenizer

Evaluator = Callable[[Any], dict[str, float]]


def make_evaluator(config: ConfigDict, setup: Setup, tokenizer: Tokenizer) -> Evaluator | None:
    """A function of the parameters that gives scalars named `eval/<split>/...`.

    Returns None where `config.data.eval_split` is empty. Losses are means over the whole batches
    of the split (one of all its clips, if they are fewer than `config.eval.batch_size`), with the
    masking of training, drawn once, and without dropout or augmentation. Several processes share
    the clips and give the same numbers as one.
    """
    split = config.data.eval_split
    if not split:
        return None
    mesh = setup.shardings.step.mesh
    everywhere = replicated(mesh)
    losses = jax.jit(make_eval_step(config, setup), out_shardings=everywhere)
    clips = Clips.read(config.data.dir, split)
    batch_size = min(config.eval.batch_size, len(clips))
    layout = batch_sharding(mesh)
    if batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        layout = everywhere  # a batch that the devices cannot share is computed by all of them
    share, shares = row_share(layout, batch_size)
    model: Model | None = None

    def evaluator(params: Any) -> dict[str, float]:
        nonlocal model
        totals: dict[str, list[float]] = {}
        loader = eval_batches(
            config.data, tokenizer, split, batch_size, process_index=share, process_count=shares
        )
        for number, batch in enumerate(loader):
            del batch["_mask"]
            # All processes leave out the same batch, though only one may see its padding.
            if (number + 1) * batch_size <= len(clips):
                arrays = {
                    name: jax.make_array_from_process_local_data(layout, value)
                    for name, value in batch.items()
                }
                for name, value in losses(params, arrays).items():
                    totals.setdefault(f"eval/{split}/{name}", []).append(float(value))
        scalars = {name: float(np.mean(values)) for name, values in totals.items()}
        if config.model.text is None:
            return scalars
        params = _on_this_process(params)
        if model is None:
            model = Model(config, params, tokenizer, f"the run {config.name!r}")
        else:
            model = model.with_params(params)
        rows = retrieval_results(
            _embed_together(model, clips), model.embed_text(clips.captions), clips, f"eval/{split}"
        )
        return scalars | {name: row["value"] for name, row in rows.items()}

    return evaluator


def _on_this_process(params: Any) -> Any:
    """The parameters where this process can compute with them alone."""
    if jax.process_count() == 1:
        return params
    return jax.device_put(multihost_utils.process_allgather(params, tiled=True))


def _embed_together(model: Model, clips: Clips) -> np.ndarray:
    """Embeddings [n, J] of all clips on every process, each having computed a part of them."""
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return embed_clips(model, clips)
    each = -(-len(clips) // count)
    mine = range(min(index * each, len(clips)), min((index + 1) * each, len(clips)))
    padded = np.zeros((each, model.embed_dim), np.float32)
    if mine:
        padded[: len(mine)] = embed_clips(model, clips, rows=mine)
    return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[: len(clips)]
