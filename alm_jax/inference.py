"""Embeddings, captions and reconstructions from a model's parameters, jitted.

What evaluation, export checks and `alm_jax.load` share.

Shapes: B batch, S samples, L tokens, J joint width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.audio.frontend import LogMelConfig, pcm_to_float
from alm_jax.audio.patches import Patches
from alm_jax.models.audio_text import AudioTextModel, needed
from alm_jax.models.towers import tower_patches
from alm_jax.objectives.forward import spectrogram


class Inference:
    """Jitted forward passes of one model structure; parameters are passed to every call."""

    def __init__(self, config: ConfigDict, graph: nnx.GraphDef):
        self.config = config.copy_and_resolve_references()
        self.graph = graph
        self.frontend = LogMelConfig(**self.config.frontend)
        self.embed_audio = jax.jit(self._embed_audio)
        self.embed_text = jax.jit(self._embed_text)
        self.caption = jax.jit(self._caption, static_argnames=("max_length",))

    def _model(self, params: Any) -> AudioTextModel:
        return nnx.merge(self.graph, params)

    def patches(self, audio: jax.Array, audio_length: jax.Array) -> Patches:
        """All patches of clips; audio [B, S] int16 or float32 in [-1, 1]."""
        pcm = audio if jnp.issubdtype(audio.dtype, jnp.floating) else pcm_to_float(audio)
        mel, frames = spectrogram(pcm, audio_length, self.frontend)
        return tower_patches(mel, frames, self.config, self.frontend)

    def _embed_audio(self, params: Any, audio: jax.Array, audio_length: jax.Array) -> jax.Array:
        """Unit-norm embeddings [B, J] float32 of audio [B, S] with valid lengths [B]."""
        return self._model(params).embed_audio(self.patches(audio, audio_length))

    def _embed_text(self, params: Any, text: jax.Array, text_mask: jax.Array) -> jax.Array:
        """Unit-norm embeddings [B, J] float32 of token ids [B, L] with mask [B, L]."""
        return self._model(params).embed_text(text, text_mask)

    def _caption(
        self,
        params: Any,
        audio: jax.Array,
        audio_length: jax.Array,
        bos: int,
        eos: int,
        *,
        max_length: int,
    ) -> jax.Array:
        """Greedy captions: token ids [B, max_length] int32 after bos, eos and zeros at the end.

        Each step runs one token through the key-value caches and stops when all rows have ended.
        """
        model = self._model(params)
        patches = self.patches(audio, audio_length)
        hidden, mask = model.audio(patches), model.audio.state_mask(patches)
        caches = model.init_caches(hidden, max_length)
        batch = hidden.shape[0]

        def unfinished(carry):
            position, _, ended, _, _ = carry
            return (position < max_length) & ~ended.all()

        def step(carry):
            position, token, ended, caches, out = carry
            logits, caches = model.decode_step(token[:, None], caches, position, mask)
            token = jnp.where(ended, 0, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
            out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], position, axis=1)
            return position + 1, token, ended | (token == eos), caches, out

        start = (
            jnp.zeros((), jnp.int32),
            jnp.full((batch,), bos, jnp.int32),
            jnp.zeros((batch,), bool),
            caches,
            jnp.zeros((batch, max_length), jnp.int32),
        )
        return jax.lax.while_loop(unfinished, step, start)[-1]

    def reconstruct(self, params: Any, visible: Patches, dropped: Patches) -> jax.Array:
        """Predicted pixels [B, M, P] of the dropped patches from the visible ones."""

        @jax.jit
        def run(params, visible, dropped):
            model = self._model(params)
            decoder = needed(model.mae_decoder, "model.mae_decoder")
            return decoder(model.audio(visible), visible, dropped)

        return run(params, visible, dropped)
