"""The RoBERTa text tower (bidirectional or causal) and the caption decoder that continues it.

Source: Cacophony `src/caco/text_models`; Hugging Face `RobertaModel` with `position_offset` 2.
Token type 0 is always added.
Shapes: B batch, L tokens, N audio tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from alm_jax.models.layers import dropout, embedding, layer_norm, linear
from alm_jax.models.linear import lookup
from alm_jax.models.transformer import Cache, Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class TextConfig(TransformerConfig):
    """Fields of `config.model.text`.

    Attributes:
      position_offset: row of the position table that the first token takes. RoBERTa's checkpoints
        have 2, one more than the id of their padding token, whose own row padding takes; Cacophony
        feeds the same table from row 0.
    """

    position_offset: int = 0


class TextRoberta(nnx.Module):
    """Word + position + token-type embeddings, LayerNorm, transformer stack."""

    def __init__(
        self,
        config: TextConfig,
        vocab_size: int,
        max_positions: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.dtype = dtype
        self.words = embedding(vocab_size, config.width, "vocab", std=0.02, rngs=rngs)
        self.positions = embedding(max_positions, config.width, None, std=0.02, rngs=rngs)
        self.token_type = embedding(1, config.width, None, std=0.02, rngs=rngs)
        self.embed_norm = layer_norm(config.width, eps=config.eps, rngs=rngs)
        self.transformer = Transformer(config, dtype=dtype, rngs=rngs)
        self.final_norm = (
            layer_norm(config.width, eps=config.eps, rngs=rngs) if config.norm == "pre" else None
        )

    def embed(
        self, tokens: jax.Array, first: jax.Array | int = 0, mask: jax.Array | None = None
    ) -> jax.Array:
        """[B, L] token ids, the first at position `first` -> [B, L, D].

        With a `position_offset`, padding (where mask [B, L] is False) takes the row before it.
        """
        offset = self.config.position_offset
        if offset and mask is not None:
            place = offset - 1 + jnp.cumsum(mask, axis=1, dtype=jnp.int32) * mask
        else:
            place = offset + first + jnp.arange(tokens.shape[1])
        x = lookup(self.words, tokens) + lookup(self.positions, place)
        x = x + self.token_type.get_value()
        return self.embed_norm(x).astype(self.dtype)

    def finish(self, x: jax.Array) -> jax.Array:
        """The last LayerNorm of a pre-LN stack; a post-LN stack ends with its own."""
        return x if self.final_norm is None else self.final_norm(x).astype(self.dtype)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states [B, L, D] of tokens [B, L] int32 with mask [B, L] bool."""
        x = self.embed(tokens, mask=mask)
        if key is not None:
            key, embed_key = jax.random.split(key)
            x = dropout(x, self.config.dropout, embed_key)
        return self.finish(self.transformer(x, mask=mask, key=key))

    def decode(
        self, token: jax.Array, cache: Cache, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Hidden state [B, 1, D] of one more token [B, 1]; only a causal tower can do this."""
        x, cache = self.transformer.decode(self.embed(token, position), cache, position)
        return self.finish(x), cache


class CaptionDecoder(nnx.Module):
    """Cross-attends from the causal text tower's states to the audio; no embeddings of its own."""

    def __init__(
        self,
        config: TransformerConfig,
        audio_width: int,
        vocab_size: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        width = config.width
        self.context = (
            linear(audio_width, width, (None, "embed"), init=config.init, dtype=dtype, rngs=rngs)
            if audio_width != width
            else None
        )
        self.transformer = Transformer(config, dtype=dtype, rngs=rngs)
        self.final_norm = (
            layer_norm(width, eps=config.eps, rngs=rngs) if config.norm == "pre" else None
        )
        self.predict = linear(
            width, vocab_size, ("embed", "vocab"), init=config.init, dtype=dtype, rngs=rngs
        )

    def project(self, audio: jax.Array) -> jax.Array:
        """Audio states in the decoder's width [B, N, D]."""
        return audio if self.context is None else self.context(audio)

    def logits(self, x: jax.Array) -> jax.Array:
        """Vocabulary logits [B, L, V] float32."""
        if self.final_norm is not None:
            x = self.final_norm(x).astype(self.dtype)
        return self.predict(x).astype(jnp.float32)

    def __call__(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        audio: jax.Array,
        audio_mask: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Next-token logits [B, L, V] from text states [B, L, D] and audio states [B, N, D']."""
        context = self.project(audio)
        x = self.transformer(text, text_mask, context, audio_mask, key=key)
        return self.logits(x)
