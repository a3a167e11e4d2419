"""The ViT audio tower over sets of patches.

Sources: Cacophony `src/caco/audio_models/mae.py`; AudioMAE `models_mae.py` and `models_vit.py`
(class token, fixed positions, no final norm in fine-tuning).
Shapes: B batch, N patches, N' states, P patch pixels, D width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.audio.packing import run_packed
from alm_jax.audio.patches import Patches
from alm_jax.models.layers import layer_norm, linear
from alm_jax.models.patch_positions import PatchShape, make_positions
from alm_jax.models.transformer import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class VitConfig(TransformerConfig):
    """Fields of `config.model.audio` of this tower.

    Attributes:
      tower: its name in `towers.TOWERS`.
      positions: a kind of `patch_positions.make_positions`.
      class_token: a learned token goes through the stack with the patches. Its state comes first.
      final_norm: LayerNorm after the last layer. AudioMAE's fine-tuned models have none here, but
        one after pooling (`model.classifier`).
    """

    tower: str = "vit"
    positions: str = "sincos_time"
    class_token: bool = False
    final_norm: bool = True


class AudioViT(nnx.Module):
    """Transformer over visible patches."""

    class_token: nnx.Param | None = None
    norm: nnx.LayerNorm | None = None

    def __init__(self, config: VitConfig, shape: PatchShape, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.width = config.width
        axes = ("patch", "embed")
        self.embed = linear(
            shape.pixels, config.width, axes, init=config.init, dtype=dtype, rngs=rngs
        )
        self.positions = make_positions(config.positions, config.width, shape, rngs=rngs)
        self.transformer = Transformer(config, dtype=dtype, rngs=rngs)
        if config.final_norm:
            self.norm = layer_norm(config.width, eps=config.eps, rngs=rngs)
        if config.class_token:
            token = nnx.initializers.normal(0.02)(rngs.params(), (config.width,), jnp.float32)
            self.class_token = nnx.Param(token, axes=("embed",))

    def __call__(self, patches: Patches, key: jax.Array | None = None) -> jax.Array:
        """Encodes patches.

        Args:
          patches: N slots a clip; padding slots are never attended to.
          key: PRNG key for dropout; None in evaluation.

        Returns:
          [B, N', D] states in the model's dtype: the class token's, if there is one, then one a
          patch slot.
        """
        x, mask = self.tokens(patches)
        x = run_packed(self.transformer, x, mask, patches, key)
        return x if self.norm is None else self.norm(x).astype(self.dtype)

    def tokens(self, patches: Patches) -> tuple[jax.Array, jax.Array]:
        """What the stack reads: tokens [B, N', D] and which of them are real, [B, N'] bool."""
        x = self.embed(patches.values) + self.positions(patches.time, patches.freq)
        mask = patches.mask
        if self.class_token is not None:
            token = self.class_token.get_value() + self.positions.of_class_token()
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return x.astype(self.dtype), mask

    def state_mask(self, patches: Patches) -> jax.Array:
        """[B, N'] bool, True for the states of patches.

        The class token's state is no part of the clip: poolers average patches alone, as AudioMAE's
        fine-tuning does, and the pooler "first" takes it whatever the mask says.
        """
        if self.class_token is None:
            return patches.mask
        return jnp.pad(patches.mask, ((0, 0), (1, 0)), constant_values=False)
