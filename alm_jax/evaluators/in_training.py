"""What the train loop measures on a schedule: the losses, and what the model's parts can answer.

That is retrieval with a text side, and the classes of the clips with a classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.metrics.classifier import classifier_metrics
from alm_jax.evaluators.results import Row
from alm_jax.evaluators.suite import embed_clips, retrieval_results
from alm_jax.inference.model import Model
from alm_jax.parallel.distributed import row_share
from alm_jax.parallel.mesh import batch_sharding, replicated, row_devices
from alm_jax.train_state import Setup
from alm_jax.train_step import make_eval_step
from input_pipeline.labels import Labels, read_labels
from input_pipeline.loader import eval_batches
from input_pipeline.loader_config import LoaderConfig
from input_pipeline.text import Tokenizer

Evaluator = Callable[[Any], dict[str, float]]
_CHUNK = 512  # clips in memory at a time


def make_evaluator(
    config: ConfigDict, setup: Setup, tokenizer: Tokenizer, classes: Sequence[str] = ()
) -> Evaluator | None:
    """A function of the parameters that gives scalars named `eval/<split>/...`.

    Returns None where `config.data.eval_split` is empty. Losses are means over the whole batches
    of the split (one of all its clips, if they are fewer than `config.eval.batch_size`), with the
    masking of training, drawn once, and without dropout or augmentation. Several processes share
    the clips and give the same numbers as one. `classes` are those that the run learns; clips
    without one take part as `config.data.unlabelled` says.
    """
    split = config.data.eval_split
    if not split:
        return None
    mesh = setup.mesh
    everywhere = replicated(mesh)
    losses = jax.jit(make_eval_step(config, setup), out_shardings=everywhere)
    data = LoaderConfig.create(config.data)
    clips = Clips.of(*data.open(split))
    if config.model.text is not None:
        clips.require_several()
        clips.require_captions()
    labels = read_labels([clips], data.labels, classes, data.unlabelled) if classes else None
    kept = len(clips) if labels is None else len(labels.kept)
    batch_size = min(config.eval.batch_size, kept)
    layout = batch_sharding(mesh)
    if batch_size % row_devices(mesh):
        layout = everywhere  # a batch that the devices cannot share is computed by all of them
    share, shares = row_share(layout, batch_size)
    model: Model | None = None

    def evaluator(params: Any) -> dict[str, float]:
        nonlocal model
        totals: dict[str, list[float]] = {}
        loader = eval_batches(
            config.data,
            tokenizer,
            split,
            batch_size,
            process_index=share,
            process_count=shares,
            labels=labels,
        )
        for number, batch in enumerate(loader):
            del batch["_mask"]
            # All processes leave out the same batch, though only one may see its padding.
            if (number + 1) * batch_size <= kept:
                arrays = {
                    name: jax.make_array_from_process_local_data(layout, value)
                    for name, value in batch.items()
                }
                for name, value in losses(params, arrays).items():
                    totals.setdefault(f"eval/{split}/{name}", []).append(float(value))
        scalars = {name: float(np.mean(values)) for name, values in totals.items()}
        if config.model.text is None and config.model.get("classifier") is None:
            return scalars
        params = _on_this_process(params)
        if model is None:
            model = Model(config, params, tokenizer, f"the run {config.name!r}")
        else:
            model = model.with_params(params)
        if labels is not None and config.model.get("classifier") is not None:
            of_classes = _classify_together(model, clips, labels, f"eval/{split}")
            scalars |= {name: row["value"] for name, row in of_classes.items()}
        if config.model.text is None:
            return scalars
        rows = retrieval_results(
            _embed_together(model, clips),
            model.embed_text(clips.captions),
            clips,
            f"eval/{split}",
            intervals=False,
        )
        return scalars | {name: row["value"] for name, row in rows.items()}

    return evaluator


def _on_this_process(params: Any) -> Any:
    """The parameters where this process can compute with them alone."""
    if jax.process_count() == 1:
        return params
    return jax.device_put(multihost_utils.process_allgather(params, tiled=True))


def _embed_together(model: Model, clips: Clips) -> np.ndarray:
    """Embeddings [n, J] of all clips on every process."""
    return _together(len(clips), model.embed_dim, lambda part: embed_clips(model, clips, rows=part))


def _classify_together(model: Model, clips: Clips, labels: Labels, prefix: str) -> dict[str, Row]:
    """Scores of the classifier on the clips that have labels, or count without."""

    def logits(part: range) -> np.ndarray:
        chunks = clips.audio_chunks("classifying clips", _CHUNK, labels.kept[part])
        return np.concatenate([model.class_logits(audio, model.sample_rate) for audio in chunks])

    found = _together(len(labels.kept), len(labels.classes), logits)
    return classifier_metrics(found, labels.rows(labels.kept), prefix=prefix)


def _together(total: int, width: int, compute: Callable[[range], np.ndarray]) -> np.ndarray:
    """Rows [total, width] on every process, each having computed a part of them.

    Args:
      total: number of rows.
      width: of a row.
      compute: float32 [len(part), width] of a part of range(total).
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return compute(range(total))
    each = -(-total // count)
    mine = range(min(index * each, total), min((index + 1) * each, total))
    padded = np.zeros((each, width), np.float32)
    if mine:
        padded[: len(mine)] = compute(mine)
    return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[:total]
