"""Classes of a clip from its pooled states: what fine-tuning on labels, or a linear probe, trains.

Source: AudioMAE `main_finetune_as.py` (binary cross-entropy over all classes, averaged over batch
and classes) and `main_finetune_esc.py` (softmax cross-entropy).
Shapes: B batch, V views of a clip, Y classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.models.audio_text import AudioTextModel, needed
from alm_jax.objectives.forward import Forward
from alm_jax.objectives.objective import Metrics, Objective, Rows

LOSSES = ("binary", "softmax")


def binary_rows(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """[B] cross-entropies of a yes-or-no question for each class, averaged over the classes.

    Args:
      logits: [B, Y] float32.
      targets: [B, Y] in 0..1, any number of classes a clip.
      label_smoothing: s turns a target t into (1 - s) t + s / 2.
    """
    smooth = (1.0 - label_smoothing) * targets + 0.5 * label_smoothing
    return optax.sigmoid_binary_cross_entropy(logits, smooth).mean(axis=-1)


def softmax_rows(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """[B] cross-entropies of the choice of one class; 0 for a clip without one.

    Args:
      logits: [B, Y] float32.
      targets: [B, Y] weights >= 0; those of a clip are divided by their sum.
      label_smoothing: share of the target spread over all classes.
    """
    total = targets.sum(axis=-1, keepdims=True)
    shares = targets / jnp.where(total > 0, total, 1.0)
    smooth = (1.0 - label_smoothing) * shares + label_smoothing / logits.shape[-1]
    return jnp.where(total[:, 0] > 0, optax.softmax_cross_entropy(logits, smooth), 0.0)


def _rows(forward: Forward, config: ConfigDict) -> Rows:
    head = needed(forward.model.classifier, "model.classifier")
    if config.loss not in LOSSES:
        raise UserError(
            f"objectives.classification.loss is {config.loss!r}; it must be one of {LOSSES}"
        )
    logits = head(forward.audio_hidden, forward.audio_mask)
    targets = jnp.repeat(forward.labels, forward.masking.views, axis=0)
    if logits.shape != targets.shape:
        raise UserError(
            f"model.classifier.classes={logits.shape[1]}, but the data have {targets.shape[1]} "
            "classes; make them equal"
        )
    rows = binary_rows if config.loss == "binary" else softmax_rows
    labelled = jnp.any(targets > 0, axis=-1)
    best = jnp.take_along_axis(targets, jnp.argmax(logits, axis=-1)[:, None], axis=1)[:, 0]
    return {
        "entropy": rows(logits, targets, config.label_smoothing),
        # A clip to which no class applies says something to yes-or-no questions only.
        "counted": jnp.ones_like(best) if config.loss == "binary" else labelled.astype(jnp.float32),
        "labelled": labelled.astype(jnp.float32),
        "hit": (best > 0).astype(jnp.float32),
    }


def _loss(rows: Rows, model: AudioTextModel, config: ConfigDict) -> tuple[jax.Array, Metrics]:
    del model, config
    loss = rows["entropy"].sum() / jnp.maximum(rows["counted"].sum(), 1.0)
    accuracy = rows["hit"].sum() / jnp.maximum(rows["labelled"].sum(), 1.0)
    return loss, {"classification_loss": loss, "classification_accuracy": accuracy}


classification = Objective(_rows, _loss)
"""Cross-entropy between the classifier's logits and the clips' labels.

Reads the states of the visible patches, `labels` and the model's `classifier`. Config: `loss`
("binary" for any number of classes a clip, "softmax" for one), `label_smoothing`. Metrics:
`classification_loss`; `classification_accuracy`, the share of labelled clips whose highest logit is
that of one of their classes (of either clip, where two are mixed).

Raises:
  UserError: no classifier, no labels in the batch, another number of classes, an unknown loss.
"""
