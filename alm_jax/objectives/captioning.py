"""Next-token prediction of the caption from audio and the tokens so far (CoCa-like).

Source: Cacophony `caco.py` in its git history. The official reduction divides by all B x (L - 1)
positions, padding included; "tokens" divides by the number of real tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.models.audio_text import needed
from alm_jax.objectives.forward import Forward

REDUCTIONS = ("positions", "tokens")


def caption_loss(
    logits: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    reduction: str = "tokens",
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Teacher-forced cross-entropy and accuracy.

    Args:
      logits: [B, L, V] float32, position i predicts token i + 1.
      tokens: [B, L] int32.
      mask: [B, L] bool, True for real tokens.
      reduction: "positions" (official) or "tokens".
      label_smoothing: share of the target spread over the vocabulary.

    Returns:
      Two scalars: the loss, and the share of real tokens predicted right.
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
    real = jnp.maximum(weight.sum(), 1.0)
    denominator = weight.size if reduction == "positions" else real
    hits = (jnp.argmax(logits, axis=-1) == targets) * weight
    return jnp.sum(loss * weight) / denominator, hits.sum() / real


def captioning(forward: Forward, config: ConfigDict) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Caption loss of the batch.

    Args:
      forward: reads audio and text states and the model's `caption_decoder`.
      config: `reduction`, `label_smoothing`.

    Returns:
      The loss, and `captioning_loss`, `captioning_accuracy`.

    Raises:
      UserError: if there is no decoder, or the clips have several views.
      ValueError: if the text tower is not causal, and would see the answer.
    """
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
    loss, accuracy = caption_loss(
        logits,
        forward.batch["text"],
        forward.batch["text_mask"],
        reduction=config.reduction,
        label_smoothing=config.label_smoothing,
    )
    return loss, {"captioning_loss": loss, "captioning_accuracy": accuracy}
