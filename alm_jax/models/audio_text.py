"""The audio-text model: whichever towers, poolers and decoders the config names, as one module.

Stage 1 of Cacophony has `audio` and `mae_decoder`; stage 2 has `audio`, `text`, their poolers and
`caption_decoder`. FLAP has all of them. A part the config leaves out (None) does not exist.
Shapes: B batch, N patches, L tokens, D width, J joint width, V vocabulary.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError
from alm_jax.models.classifier import Classifier
from alm_jax.models.mae_decoders import Decoder, build_decoder
from alm_jax.models.poolers import Pooler
from alm_jax.models.projections import MlpProjection, projection
from alm_jax.models.text_roberta import CaptionDecoder, TextConfig, TextRoberta
from alm_jax.models.towers import build_tower, patch_shape, tower_config
from alm_jax.models.transformer import Cache, TransformerConfig

Part = TypeVar("Part")


def needed(part: Part | None, field: str) -> Part:
    """The part, or an error that names the config field that would have made it.

    Raises:
      UserError: if the part is None.
    """
    if part is None:
        raise UserError(f"this model has no config.{field}; train one with it")
    return part


def normalize(x: jax.Array) -> jax.Array:
    """Unit-norm rows of x [B, J] in float32; source: Cacophony divides by the norm of x + 1e-10."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x + 1e-10, axis=-1, keepdims=True)


class AudioTextModel(nnx.Module):
    """Towers, poolers and decoders of one experiment; see the module docstring."""

    # Parts that a config may leave out.
    mae_decoder: Decoder | None = None
    classifier: Classifier | None = None
    text: TextRoberta | None = None
    audio_pool: Pooler | None = None
    audio_proj: nnx.Linear | MlpProjection | None = None
    caption_decoder: CaptionDecoder | None = None
    logit_bias: nnx.Param | None = None

    def __init__(self, config: ConfigDict, *, vocab_size: int, num_mels: int, rngs: nnx.Rngs):
        """Builds the parts that `config.model` names.

        Args:
          config: the whole experiment config; `model`, `patches` and `masking` are read.
          vocab_size: rows of the text embedding; 0 if there is no text side.
          num_mels: mel bins of the front end.
          rngs: source of the initial parameters.
        """
        model = config.model
        dtype = jnp.dtype(model.dtype)
        audio = tower_config(config)
        self.audio = build_tower(config, num_mels, dtype=dtype, rngs=rngs)
        if model.mae_decoder is not None:
            self.mae_decoder = build_decoder(
                model.mae_decoder,
                patch_shape(config, num_mels),
                audio.width,
                dtype=dtype,
                rngs=rngs,
            )
        if model.get("classifier") is not None:
            self.classifier = Classifier(
                width=audio.width, dtype=dtype, rngs=rngs, **model.classifier
            )
        if model.text is None:
            return
        joint = model.embed_dim
        text = TextConfig(**model.text)
        if config.data.max_text_length + text.position_offset > model.max_positions:
            raise UserError(
                f"data.max_text_length={config.data.max_text_length} is more than "
                f"model.max_positions={model.max_positions} (less model.text.position_offset="
                f"{text.position_offset}); raise the latter"
            )
        head = model.get("projection", "linear")
        self.audio_pool = Pooler(
            width=audio.width, init=audio.init, dtype=dtype, rngs=rngs, **model.audio_pool
        )
        if head != "linear" or joint != audio.width:
            self.audio_proj = projection(
                head, audio.width, joint, init=audio.init, dtype=dtype, rngs=rngs
            )
        self.text = TextRoberta(text, vocab_size, model.max_positions, dtype=dtype, rngs=rngs)
        self.text_pool = Pooler(
            width=text.width, init=text.init, dtype=dtype, rngs=rngs, **model.text_pool
        )
        self.text_proj = projection(head, text.width, joint, init=text.init, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(model.logit_scale_init, jnp.float32), axes=())
        if model.get("logit_bias_init") is not None:
            self.logit_bias = nnx.Param(jnp.asarray(model.logit_bias_init, jnp.float32), axes=())
        if model.caption_decoder is not None:
            self.caption_decoder = CaptionDecoder(
                TransformerConfig(**model.caption_decoder),
                audio.width,
                vocab_size,
                dtype=dtype,
                rngs=rngs,
            )

    def audio_embedding(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, J] unit-norm float32 embeddings of audio states [B, N, D] with mask [B, N].

        Without a text side there is no joint space: the mean of the states, J is D.
        """
        if self.audio_pool is None:
            weight = mask[..., None].astype(jnp.float32)
            total = (hidden.astype(jnp.float32) * weight).sum(axis=1)
            return normalize(total / weight.sum(axis=1))
        x = self.audio_pool(hidden, mask)
        return normalize(x if self.audio_proj is None else self.audio_proj(x))

    def text_embedding(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, J] unit-norm float32 embeddings of text states [B, L, D] with mask [B, L]."""
        return normalize(self.text_proj(self.text_pool(hidden, mask)))

    def classify(self, patches: Patches, key: jax.Array | None = None) -> jax.Array:
        """[B, Y] float32 logits of clips; a key for dropout and stochastic depth in training."""
        head = needed(self.classifier, "model.classifier")
        return head(self.audio(patches, key), self.audio.state_mask(patches))

    def embed_audio(self, patches: Patches) -> jax.Array:
        """[B, J] unit-norm embeddings of clips, without masking."""
        return self.audio_embedding(self.audio(patches), self.audio.state_mask(patches))

    def embed_text(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, J] unit-norm embeddings of token ids [B, L] with mask [B, L]."""
        return self.text_embedding(needed(self.text, "model.text")(tokens, mask), mask)

    def init_caches(self, audio_hidden: jax.Array, length: int) -> tuple[Cache, Cache]:
        """Empty caches of text tower and caption decoder for captions of up to `length` tokens."""
        batch = audio_hidden.shape[0]
        text = needed(self.text, "model.text")
        decoder = needed(self.caption_decoder, "model.caption_decoder")
        return (
            text.transformer.init_cache(batch, length),
            decoder.transformer.init_cache(batch, length, decoder.project(audio_hidden)),
        )

    def decode_step(
        self,
        token: jax.Array,
        caches: tuple[Cache, Cache],
        position: jax.Array,
        audio_mask: jax.Array,
    ) -> tuple[jax.Array, tuple[Cache, Cache]]:
        """Next-token logits [B, V] after token [B, 1] at `position`, and the grown caches."""
        decoder = needed(self.caption_decoder, "model.caption_decoder")
        x, text_cache = needed(self.text, "model.text").decode(token, caches[0], position)
        x, decoder_cache = decoder.transformer.decode(x, caches[1], position, audio_mask)
        return decoder.logits(x)[:, 0], (text_cache, decoder_cache)
