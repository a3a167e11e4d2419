"""Masked-autoencoder reconstruction of the dropped patches.

Source: AudioMAE section 3 (target, per-patch normalisation with the unbiased variance + 1e-6);
Cacophony publishes no stage-1 loss, so both targets are offered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alm_jax.models.audio_text import AudioTextModel, needed
from alm_jax.objectives.forward import Forward
from alm_jax.objectives.objective import Metrics, Objective, Rows


def patch_target(values: jax.Array, normalize: bool) -> jax.Array:
    """Pixels [B, M, P] as they are predicted: raw, or per patch zero mean and unit variance."""
    if not normalize:
        return values
    mean = values.mean(axis=-1, keepdims=True)
    variance = jnp.var(values, axis=-1, keepdims=True, ddof=1)
    return (values - mean) / jnp.sqrt(variance + 1e-6)


def _rows(forward: Forward, config: ConfigDict) -> Rows:
    """Errors, counts and targets of each view; see `reconstruction`.

    Returns:
      `error` [B], the summed errors of its dropped patches; `dropped` [B], their number; `target`
      [B, P], the mean of their targets; `deviation` [B], the error of predicting that mean.
    """
    visible, dropped = forward.view
    if dropped is None:
        raise ValueError("objectives.reconstruction needs dropped patches: set masking.ratio > 0")
    decoder = needed(forward.model.mae_decoder, "model.mae_decoder")
    hidden = forward.audio_hidden
    prediction = decoder(hidden, visible, dropped, key=forward.key_for("mae"))
    target = patch_target(dropped.values, config.normalize_target)
    weight = dropped.mask.astype(jnp.float32)
    count = weight.sum(axis=1)
    mean = jnp.sum(target * weight[..., None], axis=1) / jnp.maximum(count, 1.0)[:, None]

    def error_of(prediction: jax.Array) -> jax.Array:
        return jnp.sum(jnp.mean((prediction - target) ** 2, axis=-1) * weight, axis=1)

    return {
        "error": error_of(prediction),
        "dropped": count,
        "target": mean,
        "deviation": error_of(mean[:, None]),
    }


def _loss(rows: Rows, model: AudioTextModel, config: ConfigDict) -> tuple[jax.Array, Metrics]:
    del model, config
    count = jnp.maximum(rows["dropped"].sum(), 1.0)
    loss = rows["error"].sum() / count
    # The spread around the batch's mean: that around each clip's, and that of the clips' means.
    mean = jnp.sum(rows["target"] * rows["dropped"][:, None], axis=0) / count
    between = jnp.mean((rows["target"] - mean) ** 2, axis=-1) * rows["dropped"]
    flat = jnp.sum(rows["deviation"] + between) / count
    return loss, {"reconstruction_loss": loss, "reconstruction_predict_mean": flat}


reconstruction = Objective(_rows, _loss)
"""Mean squared error over all dropped patches of the batch.

Reads `view`, `audio_hidden` and the model's `mae_decoder`. Config: `normalize_target`. Metrics:
`reconstruction_loss`, and `reconstruction_predict_mean`, the error of always predicting the mean of
the targets, which a flat loss would sit at.

Raises:
  UserError: if there is no decoder.
  ValueError: if the config masks nothing.
"""
