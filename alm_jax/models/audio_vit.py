"""The ViT audio tower over sets of patches, and the masked-autoencoder decoder (Cacophony).

Source: Cacophony `src/caco/audio_models/mae.py`; sizes and names in the class docstrings.
Shapes: B batch, N patches, P patch pixels, D width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.audio.patches import Patches
from alm_jax.models.layers import embedding, layer_norm, linear, sincos_positions
from alm_jax.models.transformer import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class PatchShape:
    """What a tower must know of its patches: pixels of one and number of frequency rows."""

    pixels: int
    freq_rows: int


@dataclasses.dataclass(frozen=True)
class VitConfig(TransformerConfig):
    """Fields of `config.model.audio` of this tower.

    Attributes:
      tower: its name in `towers.TOWERS`.
    """

    tower: str = "vit"


class PatchPositions(nnx.Module):
    """Adds the place of each patch: fixed sin/cos in time, a learned table in frequency."""

    def __init__(self, width: int, freq_rows: int, *, rngs: nnx.Rngs):
        self.width = width
        self.freq = embedding(freq_rows, width, None, std=0.02, rngs=rngs)

    def __call__(self, time: jax.Array, freq: jax.Array) -> jax.Array:
        """Positions [B, N, D] float32 of the patches at (time, freq), both [B, N]."""
        return sincos_positions(time, self.width) + jnp.take(self.freq.get_value(), freq, axis=0)


class AudioViT(nnx.Module):
    """Pre-LN transformer over visible patches, without a class token, with a final LayerNorm."""

    def __init__(self, config: VitConfig, shape: PatchShape, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.width = config.width
        axes = ("patch", "embed")
        self.embed = linear(
            shape.pixels, config.width, axes, init=config.init, dtype=dtype, rngs=rngs
        )
        self.positions = PatchPositions(config.width, shape.freq_rows, rngs=rngs)
        self.transformer = Transformer(config, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(config.width, eps=config.eps, rngs=rngs)

    def __call__(self, patches: Patches, key: jax.Array | None = None) -> jax.Array:
        """Encodes patches.

        Args:
          patches: N slots a clip; padding slots are never attended to.
          key: PRNG key for dropout; None in evaluation.

        Returns:
          [B, N, D] hidden states in the model's dtype.
        """
        x = self.embed(patches.values) + self.positions(patches.time, patches.freq)
        x = self.transformer(x.astype(self.dtype), mask=patches.mask, key=key)
        return self.norm(x).astype(self.dtype)

    def state_mask(self, patches: Patches) -> jax.Array:
        """[B, N] bool: there is one state a patch."""
        return patches.mask


class MaeDecoder(nnx.Module):
    """Predicts dropped patches from visible ones.

    Visible states and one learned vector per dropped patch are concatenated, not unshuffled: each
    carries its place, so their order does not matter (Cacophony's stage 1).
    """

    def __init__(
        self,
        config: TransformerConfig,
        shape: PatchShape,
        encoder_width: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        width = config.width
        self.embed = linear(
            encoder_width, width, ("embed", None), init=config.init, dtype=dtype, rngs=rngs
        )
        self.positions = PatchPositions(width, shape.freq_rows, rngs=rngs)
        restore = nnx.initializers.normal(0.02)(rngs.params(), (width,), jnp.float32)
        self.restore = nnx.Param(restore, axes=("embed",))
        self.transformer = Transformer(config, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, eps=config.eps, rngs=rngs)
        self.predict = linear(
            width, shape.pixels, ("embed", "patch"), init=config.init, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, hidden: jax.Array, visible: Patches, dropped: Patches, key: jax.Array | None = None
    ) -> jax.Array:
        """Predicts the pixels of the dropped patches.

        Args:
          hidden: [B, N, D] the encoder's states of the visible patches.
          visible: their places and mask; the values are not read.
          dropped: places and mask of the M patches to predict; the values are not read.
          key: PRNG key for dropout; None in evaluation.

        Returns:
          [B, M, P] float32 predictions.
        """
        states = self.embed(hidden) + self.positions(visible.time, visible.freq)
        restore = self.restore.get_value() + self.positions(dropped.time, dropped.freq)
        x = jnp.concatenate([states, restore], axis=1).astype(self.dtype)
        mask = jnp.concatenate([visible.mask, dropped.mask], axis=1)
        x = self.transformer(x, mask=mask, key=key)[:, visible.mask.shape[1] :]
        return self.predict(self.norm(x).astype(self.dtype)).astype(jnp.float32)
