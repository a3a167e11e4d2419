"""Audio-text contrastive losses over the global batch.

Under jit the arrays are global, and `alm_jax.objectives.pairs` scores all their pairs.
Source: Cacophony `caco.py` in its git history (sum of both directions, not halved), InfoNCE.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.models.audio_text import AudioTextModel, needed
from alm_jax.objectives.forward import Forward
from alm_jax.objectives.objective import Metrics, Objective, Rows
from alm_jax.objectives.pairs import info_nce, sigmoid
from alm_jax.objectives.spread import spread

LOSSES = ("info_nce", "sigmoid")
REDUCTIONS = {"sum": 1.0, "mean": 0.5}


def caption_digest(tokens: jax.Array) -> jax.Array:
    """[B] int32 hashes of tokens [B, L]; equal captions have equal ones."""
    weights = jax.random.randint(
        jax.random.key(0), (tokens.shape[1],), 0, jnp.iinfo(jnp.int32).max, jnp.int32
    )
    # A 32-bit hash instead of comparing B x B x L tokens; int32 products wrap, which is intended.
    return jnp.sum(tokens * weights, axis=1)


def shared_captions(digest: jax.Array) -> jax.Array:
    """Share of the rows of digest [B] whose value another row has too."""
    ordered = jnp.sort(digest)
    like_next = jnp.append(ordered[1:] == ordered[:-1], False)
    return jnp.mean(like_next | jnp.roll(like_next, 1))


def _rows(forward: Forward, config: ConfigDict) -> Rows:
    del config
    return {
        "audio": forward.audio_embedding,
        "text": forward.text_embedding,
        "caption": caption_digest(forward.batch["text"]),
    }


def _loss(rows: Rows, model: AudioTextModel, config: ConfigDict) -> tuple[jax.Array, Metrics]:
    kind = config.get("loss", "info_nce")  # configs of older workdirs name no loss
    if kind not in LOSSES:
        raise UserError(f"objectives.contrastive.loss is {kind!r}; it must be one of {LOSSES}")
    if config.reduction not in REDUCTIONS:
        raise ValueError(
            f"objectives.contrastive.reduction is {config.reduction!r}; "
            f"it must be one of {list(REDUCTIONS)}"
        )
    scale = jnp.exp(model.logit_scale.get_value())
    if config.max_logit_scale:
        scale = jnp.minimum(scale, config.max_logit_scale)
    text, caption = rows["text"], rows["caption"]
    batch = text.shape[0]
    group = caption if config.ignore_same_caption else None
    metrics = {"logit_scale": scale, "same_caption_share": shared_captions(caption)}
    metrics["audio_cosine"], metrics["audio_rank"] = spread(rows["audio"])
    metrics["text_cosine"], metrics["text_rank"] = spread(text)

    if kind == "sigmoid":
        bias = needed(model.logit_bias, "model.logit_bias_init").get_value()
        if config.label_smoothing:
            raise UserError(
                f"objectives.contrastive.label_smoothing={config.label_smoothing:g} is for "
                "loss='info_nce'; set it to 0 for loss='sigmoid'"
            )
        metrics["logit_bias"] = bias
        # Of one logit for all pairs, the best there is: their share of positives is 1 / batch.
        chance = math.log(batch) + (batch - 1) * math.log(batch / max(batch - 1, 1))
    else:
        chance = 2.0 * REDUCTIONS[config.reduction] * math.log(batch)

    def of_view(audio: jax.Array) -> tuple[jax.Array, jax.Array]:
        if kind == "sigmoid":
            return sigmoid(audio, text, scale, bias, group)
        to_text, to_audio, accuracy = info_nce(audio, text, scale, group, config.label_smoothing)
        return REDUCTIONS[config.reduction] * (to_text + to_audio), accuracy

    views = rows["audio"].reshape(batch, -1, text.shape[1])
    losses, accuracies = zip(*(of_view(views[:, n]) for n in range(views.shape[1])), strict=True)
    loss = jnp.stack(losses).mean()
    return loss, metrics | {
        "contrastive_loss": loss,
        "contrastive_chance": jnp.asarray(chance),
        "contrastive_accuracy": jnp.stack(accuracies).mean(),
    }


contrastive = Objective(_rows, _loss)
"""All pairs of a batch scored; of several masked views, the mean (FLAP).

Each view of the batch is scored against the captions by itself, so that the number of negatives
does not depend on the number of views. Reads both embeddings, the tokens, and the model's
`logit_scale` (log space) and `logit_bias`.

Config: `loss` ("info_nce" or "sigmoid"); `reduction` of the two directions of InfoNCE ("sum" as in
Cacophony, "mean" as in CLIP; the sigmoid loss has one direction); `max_logit_scale` (clamp of
exp(logit_scale), 0 for none); `ignore_same_caption`; `label_smoothing` (InfoNCE).
Metrics: `contrastive_loss`, `contrastive_chance` (what a model that tells nothing apart gives),
`contrastive_accuracy`, `logit_scale`, `same_caption_share`, of the sigmoid loss `logit_bias`; the
mean cosine and effective rank of each side's embeddings (`audio_cosine`, `audio_rank`, `text_...`).

Raises:
  UserError: of an unknown loss; of the sigmoid loss without a bias, or with label smoothing.
"""
