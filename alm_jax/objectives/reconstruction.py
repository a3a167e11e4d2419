"""Masked-autoencoder reconstruction of the dropped patches.

Source: AudioMAE section 3 (target, per-patch normalisation with the unbiased variance + 1e-6);
Cacophony publishes no stage-1 loss, so both targets are offered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alm_jax.models.audio_text import needed
from alm_jax.objectives.forward import Forward


def patch_target(values: jax.Array, normalize: bool) -> jax.Array:
    """Pixels [B, M, P] as they are predicted: raw, or per patch zero mean and unit variance."""
    if not normalize:
        return values
    mean = values.mean(axis=-1, keepdims=True)
    variance = jnp.var(values, axis=-1, keepdims=True, ddof=1)
    return (values - mean) / jnp.sqrt(variance + 1e-6)


def reconstruction(forward: Forward, config: ConfigDict) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error over all dropped patches of the batch.

    Args:
      forward: reads `view`, `audio_hidden` and the model's `mae_decoder`.
      config: `normalize_target`.

    Returns:
      The loss, and `reconstruction_loss` with `reconstruction_predict_mean`, the error of always
      predicting the mean of the targets, which a flat loss would sit at.

    Raises:
      UserError: if there is no decoder.
      ValueError: if the config masks nothing.
    """
    visible, dropped = forward.view
    if dropped is None:
        raise ValueError("objectives.reconstruction needs dropped patches: set masking.ratio > 0")
    decoder = needed(forward.model.mae_decoder, "model.mae_decoder")
    hidden = forward.audio_hidden
    prediction = decoder(hidden, visible, dropped, key=forward.key_for("mae"))
    target = patch_target(dropped.values, config.normalize_target)
    weight = dropped.mask.astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)
    loss = jnp.sum(jnp.mean((prediction - target) ** 2, axis=-1) * weight) / count
    mean = jnp.sum(target * weight[..., None], axis=(0, 1)) / count
    flat = jnp.sum(jnp.mean((target - mean) ** 2, axis=-1) * weight) / count
    return loss, {"reconstruction_loss": loss, "reconstruction_predict_mean": flat}
