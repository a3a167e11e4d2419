"""Decoders of masked autoencoders: visible states -> pixels of the dropped patches.

`config.model.mae_decoder.decoder` names one of `DECODERS`.
Sources: Cacophony `src/caco/audio_models/mae.py`; AudioMAE `models_mae.py` (`decoder_mode` 0, 1).
Shapes: B batch, N visible patches, N' states, M dropped patches, P patch pixels, C columns, R rows,
D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.audio.packing import run_packed
from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError
from alm_jax.models.layers import layer_norm, linear
from alm_jax.models.patch_positions import PatchShape, make_positions
from alm_jax.models.transformer import Transformer, TransformerConfig
from alm_jax.models.windows import WindowConfig, WindowTransformer


class Decoder(Protocol):
    """What objectives ask of a decoder."""

    def __call__(
        self, hidden: jax.Array, visible: Patches, dropped: Patches, key: jax.Array | None = None
    ) -> jax.Array:
        """Predicts the pixels of the dropped patches.

        Args:
          hidden: [B, N', D] the encoder's states: the class token's, if it has one, then one a slot
            of `visible`.
          visible: their places and mask; the values are not read.
          dropped: places and mask of the M patches to predict; the values are not read.
          key: PRNG key for dropout; None in evaluation.

        Returns:
          [B, M, P] float32 predictions.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DecoderConfig(TransformerConfig):
    """Fields of `config.model.mae_decoder`.

    Attributes:
      decoder: a key of `DECODERS`.
      positions: a kind of `patch_positions.make_positions`.
    """

    decoder: str = "concatenated"
    positions: str = "sincos_time"


@dataclasses.dataclass(frozen=True)
class SwinDecoderConfig(WindowConfig):
    """As `DecoderConfig`, for the decoder "swin"."""

    decoder: str = "swin"
    positions: str = "sincos_2d"


class ConcatenatingDecoder(nnx.Module):
    """Cacophony's stage-1 decoder, "concatenated".

    Visible states and one learned vector per dropped patch are concatenated, not unshuffled: each
    carries its place, so their order does not matter. A class token's state is left out.
    """

    def __init__(
        self,
        config: DecoderConfig,
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
        self.positions = make_positions(config.positions, width, shape, rngs=rngs)
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
        """Pixels [B, M, P] of the dropped patches; see `Decoder`."""
        states = self.embed(_of_patches(hidden, visible))
        states += self.positions(visible.time, visible.freq)
        restore = self.restore.get_value() + self.positions(dropped.time, dropped.freq)
        x = jnp.concatenate([states, restore], axis=1).astype(self.dtype)
        mask = jnp.concatenate([visible.mask, dropped.mask], axis=1)
        x = run_packed(self.transformer, x, mask, visible, key)[:, visible.mask.shape[1] :]
        return self.predict(self.norm(x).astype(self.dtype)).astype(jnp.float32)


class _MaskTokenDecoder(nnx.Module):
    """What AudioMAE's two decoders share: input, positions, mask token and output."""

    transformer: Any

    def __init__(
        self,
        config: DecoderConfig | SwinDecoderConfig,
        shape: PatchShape,
        encoder_width: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = config.width
        self.dtype = dtype
        self.shape = shape
        self.embed = linear(
            encoder_width, width, ("embed", None), init=config.init, dtype=dtype, rngs=rngs
        )
        self.positions = make_positions(config.positions, width, shape, rngs=rngs)
        token = nnx.initializers.normal(0.02)(rngs.params(), (width,), jnp.float32)
        self.mask_token = nnx.Param(token, axes=("embed",))
        self.norm = layer_norm(width, eps=config.eps, rngs=rngs)
        self.predict = linear(
            width, shape.pixels, ("embed", "patch"), init=config.init, dtype=dtype, rngs=rngs
        )

    def pixels(self, x: jax.Array) -> jax.Array:
        """[B, M, D] -> [B, M, P] float32."""
        return self.predict(self.norm(x).astype(self.dtype)).astype(jnp.float32)


class VitDecoder(_MaskTokenDecoder):
    """AudioMAE's plain decoder: global attention over class token, visible and mask tokens.

    The official code puts the tokens back into their order first. Each carries its place and all
    attend to all, so the order changes nothing and they stay concatenated.
    """

    def __init__(
        self,
        config: DecoderConfig,
        shape: PatchShape,
        encoder_width: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, shape, encoder_width, dtype=dtype, rngs=rngs)
        self.transformer = Transformer(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, hidden: jax.Array, visible: Patches, dropped: Patches, key: jax.Array | None = None
    ) -> jax.Array:
        """Pixels [B, M, P] of the dropped patches; see `Decoder`."""
        x, mask = self.tokens(hidden, visible, dropped)
        x = run_packed(self.transformer, x, mask, visible, key)
        return self.pixels(x[:, hidden.shape[1] :])

    def tokens(
        self, hidden: jax.Array, visible: Patches, dropped: Patches
    ) -> tuple[jax.Array, jax.Array]:
        """What the stack reads: tokens [B, N' + M, D] and which of them are real."""
        class_tokens = hidden.shape[1] - visible.mask.shape[1]
        places = self.positions(visible.time, visible.freq)
        if class_tokens:
            place = jnp.broadcast_to(
                self.positions.of_class_token(), (len(places), class_tokens, places.shape[-1])
            )
            places = jnp.concatenate([place, places], axis=1)
        tokens = self.mask_token.get_value() + self.positions(dropped.time, dropped.freq)
        x = jnp.concatenate([self.embed(hidden) + places, tokens], axis=1).astype(self.dtype)
        mask = jnp.concatenate([visible.mask, dropped.mask], axis=1)
        return x, jnp.pad(mask, ((0, 0), (class_tokens, 0)), constant_values=True)


class SwinDecoder(_MaskTokenDecoder):
    """AudioMAE's window decoder over the whole grid, without class token.

    A place of the grid that no visible patch has, dropped or not part of the budget, holds the mask
    token.
    """

    def __init__(
        self,
        config: SwinDecoderConfig,
        shape: PatchShape,
        encoder_width: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if not shape.columns:
            raise UserError(
                "model.mae_decoder.decoder='swin' needs clips of one length: set patches.frames "
                "(AudioMAE: 1024)"
            )
        super().__init__(config, shape, encoder_width, dtype=dtype, rngs=rngs)
        self.transformer = WindowTransformer(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, hidden: jax.Array, visible: Patches, dropped: Patches, key: jax.Array | None = None
    ) -> jax.Array:
        """Pixels [B, M, P] of the dropped patches; see `Decoder`."""
        x = self.transformer(self.grid(hidden, visible), key=key)
        place = (dropped.time * self.shape.freq_rows + dropped.freq)[..., None]
        every = x.reshape(len(x), -1, x.shape[-1])
        return self.pixels(jnp.take_along_axis(every, place, axis=1))

    def grid(self, hidden: jax.Array, visible: Patches) -> jax.Array:
        """What the stack reads, [B, C, R, D]: visible states at their places, else mask tokens."""
        columns, rows = self.shape.columns, self.shape.freq_rows
        states = self.embed(_of_patches(hidden, visible))
        token = self.mask_token.get_value().astype(states.dtype)
        empty = jnp.broadcast_to(token, (columns * rows, len(token)))
        # Padding slots point past the grid, where nothing is written.
        place = jnp.where(visible.mask, visible.time * rows + visible.freq, columns * rows)
        x = jax.vmap(lambda at, values: empty.at[at].set(values, mode="drop"))(place, states)
        time, freq = jnp.divmod(jnp.arange(columns * rows), rows)
        x = (x + self.positions(time, freq)).astype(self.dtype)
        return x.reshape(len(x), columns, rows, -1)


DECODERS: dict[str, tuple[Any, Any]] = {
    "concatenated": (DecoderConfig, ConcatenatingDecoder),
    "vit": (DecoderConfig, VitDecoder),
    "swin": (SwinDecoderConfig, SwinDecoder),
}


def decoder_config(fields: ConfigDict) -> DecoderConfig | SwinDecoderConfig:
    """`config.model.mae_decoder` as its decoder's dataclass; "concatenated" where none is named.

    Raises:
      UserError: an unknown decoder, or a field that it does not have.
    """
    name = fields.get("decoder", "concatenated")
    if name not in DECODERS:
        raise UserError(f"model.mae_decoder.decoder={name!r}: must be one of {list(DECODERS)}")
    kind = DECODERS[name][0]
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - known):
        raise UserError(
            f"model.mae_decoder has the fields {unknown}, which the decoder {name!r} does not know;"
            f" it has {sorted(known)}"
        )
    return kind(**fields)


def build_decoder(
    fields: ConfigDict,
    shape: PatchShape,
    encoder_width: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Decoder:
    """The decoder that `config.model.mae_decoder` names.

    Args:
      fields: that group of the config.
      shape: of the patches.
      encoder_width: D of the states.
      dtype: of matmul inputs.
      rngs: source of the initial parameters.

    Raises:
      UserError: an unknown decoder or field, or one that needs clips of one length.
    """
    config = decoder_config(fields)
    return DECODERS[config.decoder][1](config, shape, encoder_width, dtype=dtype, rngs=rngs)


def _of_patches(hidden: jax.Array, visible: Patches) -> jax.Array:
    """States [B, N, D] of the patches alone, without a class token's."""
    return hidden[:, hidden.shape[1] - visible.mask.shape[1] :]
