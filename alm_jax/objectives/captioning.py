"""Next-token prediction of the caption from audio and the tokens so far (CoCa-like).

Source: Cacophony `caco.py` in its git history. The official reduction divides by all B x (L - 1)
positions, padding included; "tokens" divides by the number of real tokens.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.models.audio_text import AudioTextModel, needed
from alm_jax.objectives.forward import Forward
from alm_jax.objectives.objective import Metrics, Objective, Rows

REDUCTIONS = ("positions", "tokens")


def caption_rows(
    logits: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    reduction: str = "tokens",
    label_smoothing: float = 0.0,
) -> Rows:
    """Teacher-forced cross-entropy and hits of each caption.

    Args:
      logits: [B, L, V] float32, position i predicts token i + 1.
      tokens: [B, L] int32.
      mask: [B, L] bool, True for real tokens.
      reduction: "positions" (official) or "tokens".
      label_smoothing: share of the target spread over the vocabulary.

    Returns:
      Arrays [B]: `entropy`, the sum over real tokens; `divisor`, what the reduction counts;
      `tokens`, the number of real ones that are predicted; `hits`, that of those predicted right.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"objectives.captioning.reduction is {reduction!r}; it must be one of {REDUCTIONS}"
        )
    logits, targets = logits[:, :-1], tokens[:, 1:]
    weight = mask[:, 1:].astype(jnp.float32)
    if label_smoothing:
        labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), label_smoothing)
        loss = optax.softmax_cross_entropy(logits, labels)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    real = weight.sum(axis=1)
    hits = (jnp.argmax(logits, axis=-1) == targets) * weight
    return {
        "entropy": jnp.sum(loss * weight, axis=1),
        "divisor": jnp.full_like(real, weight.shape[1]) if reduction == "positions" else real,
        "tokens": real,
        "hits": hits.sum(axis=1),
    }


def caption_loss(rows: Rows) -> tuple[jax.Array, jax.Array]:
    """The loss, and the share of real tokens predicted right, of all of `caption_rows`."""
    return (
        rows["entropy"].sum() / jnp.maximum(rows["divisor"].sum(), 1.0),
        rows["hits"].sum() / jnp.maximum(rows["tokens"].sum(), 1.0),
    )


def caption_references(
    tokens: jax.Array, mask: jax.Array, divisor: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """The caption loss of decoders that ignore audio and earlier tokens.

    Args:
      tokens: [B, L] int32.
      mask: [B, L] bool, True for real tokens.
      divisor: scalar, what the loss is divided by.
      vocab_size: V.

    Returns:
      Two scalars: of one that gives all tokens the same probability, and of one that gives them
      their frequencies in this batch.
    """
    weight = mask[:, 1:].astype(jnp.float32)
    counts = jnp.zeros(vocab_size, jnp.float32).at[tokens[:, 1:]].add(weight)
    total = jnp.maximum(counts.sum(), 1.0)
    frequencies = jnp.sum(counts * (jnp.log(total) - jnp.log(jnp.maximum(counts, 1.0))))
    return total * math.log(vocab_size) / divisor, frequencies / divisor


def _rows(forward: Forward, config: ConfigDict) -> Rows:
    decoder = needed(forward.model.caption_decoder, "model.caption_decoder")
    if not needed(forward.model.text, "model.text").config.causal:
        raise ValueError("objectives.captioning needs model.text.causal=True: the decoder reads it")
    if forward.masking.views > 1:
        raise UserError(
            "objectives.captioning describes one view of a clip: set masking.views=1, or leave the "
            "objective out"
        )
    logits = decoder(
        forward.text_hidden,
        forward.batch["text_mask"],
        forward.audio_hidden,
        forward.audio_mask,
        key=forward.key_for("decoder"),
    )
    text = {"text": forward.batch["text"], "text_mask": forward.batch["text_mask"]}
    return text | caption_rows(
        logits,
        *text.values(),
        reduction=config.reduction,
        label_smoothing=config.label_smoothing,
    )


def _loss(rows: Rows, model: AudioTextModel, config: ConfigDict) -> tuple[jax.Array, Metrics]:
    del config
    loss, accuracy = caption_loss(rows)
    uniform, unigram = caption_references(
        rows["text"],
        rows["text_mask"],
        jnp.maximum(rows["divisor"].sum(), 1.0),
        needed(model.text, "model.text").words.get_value().shape[0],
    )
    return loss, {
        "captioning_loss": loss,
        "captioning_accuracy": accuracy,
        "captioning_uniform": uniform,
        "captioning_unigram": unigram,
    }


captioning = Objective(_rows, _loss)
"""Caption loss of the batch.

Reads audio and text states and the model's `caption_decoder`. Config: `reduction`,
`label_smoothing`. Metrics: `captioning_loss`, `captioning_accuracy`; `captioning_uniform` and
`captioning_unigram`, what is reached without looking at the audio, see `caption_references`.

Raises:
  UserError: if there is no decoder, or the clips have several views.
  ValueError: if the text tower is not causal, and would see the answer.
"""
