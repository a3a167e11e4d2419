"""Audio-text contrastive loss over the global batch.

Under jit the arrays are global, so the logits are over the global batch without any gather.
Source: Cacophony `caco.py` in its git history (sum of both directions, not halved), InfoNCE.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alm_jax.models.audio_text import AudioTextModel
from alm_jax.objectives.forward import Forward
from alm_jax.objectives.objective import Metrics, Objective, Rows

REDUCTIONS = {"sum": 1.0, "mean": 0.5}


def info_nce(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    *,
    ignore: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropies audio -> text and text -> audio.

    Args:
      audio: [B, J] unit-norm float32.
      text: [B, J] unit-norm float32.
      scale: inverse temperature, a scalar.
      ignore: [B, B] bool, pairs that are neither positive nor negative; never on the diagonal.
      label_smoothing: share of the target spread over all pairs of a row.

    Returns:
      Two scalars, each a mean over the batch.
    """
    logits = scale * jnp.matmul(audio, text.T, precision=jax.lax.Precision.HIGHEST)
    if ignore is not None:
        logits = jnp.where(ignore, -jnp.inf, logits)

    def cross_entropy(rows: jax.Array) -> jax.Array:
        log_probability = jax.nn.log_softmax(rows, axis=-1)
        loss = -jnp.diagonal(log_probability)
        if label_smoothing:
            finite = jnp.isfinite(log_probability)
            spread = jnp.where(finite, log_probability, 0.0).sum(-1) / finite.sum(-1)
            loss = (1.0 - label_smoothing) * loss - label_smoothing * spread
        return loss.mean()

    return cross_entropy(logits), cross_entropy(logits.T)


def caption_digest(tokens: jax.Array) -> jax.Array:
    """[B] int32 hashes of tokens [B, L]; equal captions have equal ones."""
    weights = jax.random.randint(
        jax.random.key(0), (tokens.shape[1],), 0, jnp.iinfo(jnp.int32).max, jnp.int32
    )
    # A 32-bit hash instead of comparing B x B x L tokens; int32 products wrap, which is intended.
    return jnp.sum(tokens * weights, axis=1)


def same_caption(digest: jax.Array) -> jax.Array:
    """[B, B] bool, True off the diagonal where two rows have the same digest [B]."""
    return (digest[:, None] == digest[None, :]) & ~jnp.eye(digest.shape[0], dtype=bool)


def _rows(forward: Forward, config: ConfigDict) -> Rows:
    del config
    return {
        "audio": forward.audio_embedding,
        "text": forward.text_embedding,
        "caption": caption_digest(forward.batch["text"]),
    }


def _loss(rows: Rows, model: AudioTextModel, config: ConfigDict) -> tuple[jax.Array, Metrics]:
    if config.reduction not in REDUCTIONS:
        raise ValueError(
            f"objectives.contrastive.reduction is {config.reduction!r}; "
            f"it must be one of {list(REDUCTIONS)}"
        )
    audio, text = rows["audio"], rows["text"]
    scale = jnp.exp(model.logit_scale.get_value())
    if config.max_logit_scale:
        scale = jnp.minimum(scale, config.max_logit_scale)
    same = same_caption(rows["caption"])
    ignore = same if config.ignore_same_caption else None
    views = audio.reshape(text.shape[0], -1, audio.shape[-1])
    losses = []
    for view in range(views.shape[1]):
        to_text, to_audio = info_nce(
            views[:, view], text, scale, ignore=ignore, label_smoothing=config.label_smoothing
        )
        losses.append(REDUCTIONS[config.reduction] * (to_text + to_audio))
    loss = jnp.stack(losses).mean()
    similarity = jax.lax.stop_gradient(audio) @ jax.lax.stop_gradient(text).T
    hits = jnp.argmax(similarity, axis=1) == jnp.arange(audio.shape[0]) // views.shape[1]
    return loss, {
        "contrastive_loss": loss,
        "contrastive_chance": jnp.asarray(
            2.0 * REDUCTIONS[config.reduction] * math.log(text.shape[0])
        ),
        "contrastive_accuracy": hits.mean(),
        "logit_scale": scale,
        "same_caption_share": same.any(axis=1).mean(),
    }


contrastive = Objective(_rows, _loss)
"""InfoNCE in both directions; of several masked views, the mean (FLAP).

Each view of the batch is scored against the captions by itself, so that the number of negatives
does not depend on the number of views. Reads both embeddings, the tokens and the model's
`logit_scale` (log space). Config: `reduction` ("sum" as in Cacophony, "mean" as in CLIP),
`max_logit_scale` (clamp of exp(logit_scale), 0 for none), `ignore_same_caption`, `label_smoothing`.
Metrics: `contrastive_loss`, `contrastive_chance` (what random embeddings give),
`contrastive_accuracy`, `logit_scale`, `same_caption_share`.
"""
