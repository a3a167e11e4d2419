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
from alm_jax.inference.decoding import Decoding, beam_search, clip_keys, generate
from alm_jax.models.audio_text import AudioTextModel, needed
from alm_jax.models.towers import tower_patches
from alm_jax.objectives.forward import spectrogram

GREEDY = Decoding()


class Inference:
    """Jitted forward passes of one model structure; parameters are passed to every call."""

    def __init__(self, config: ConfigDict, graph: nnx.GraphDef):
        self.config = config.copy_and_resolve_references()
        self.graph = graph
        self.frontend = LogMelConfig(**self.config.frontend)
        self.embed_audio = jax.jit(self._embed_audio)
        self.embed_text = jax.jit(self._embed_text)
        self.class_logits = jax.jit(self._class_logits)
        self.caption = jax.jit(self._caption, static_argnames=("max_length", "how"))

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

    def _class_logits(self, params: Any, audio: jax.Array, audio_length: jax.Array) -> jax.Array:
        """Logits [B, Y] float32 of the classifier for audio [B, S] with valid lengths [B]."""
        return self._model(params).classify(self.patches(audio, audio_length))

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
        seed: int = 0,
        *,
        max_length: int,
        how: Decoding = GREEDY,
    ) -> jax.Array:
        """Captions: token ids [B, max_length] int32 after bos, eos and zeros at the end.

        Each step runs one token through the key-value caches and stops when all rows have ended.
        `seed` is that of sampling; `how.seed` is not read, so that a seed is no new program.
        """
        model = self._model(params)
        patches = self.patches(audio, audio_length)
        hidden, mask = model.audio(patches), model.audio.state_mask(patches)
        batch = hidden.shape[0]
        if how.method == "beam":
            hidden, mask = (jnp.repeat(x, how.beams, axis=0) for x in (hidden, mask))
        caches = model.init_caches(hidden, max_length)

        def step(token: jax.Array, caches: Any, position: jax.Array) -> tuple[jax.Array, Any]:
            return model.decode_step(token, caches, position, mask)

        limits: dict[str, Any] = dict(bos=bos, eos=eos, max_length=max_length, how=how)
        if how.method == "beam":

            def select(caches: Any, index: jax.Array) -> Any:
                return tuple(cache.rows(index) for cache in caches)

            return beam_search(step, caches, select, batch, **limits)[0]
        return generate(step, caches, clip_keys(seed, audio, audio_length), **limits)

    def reconstruct(self, params: Any, visible: Patches, dropped: Patches) -> jax.Array:
        """Predicted pixels [B, M, P] of the dropped patches from the visible ones."""

        @jax.jit
        def run(params, visible, dropped):
            model = self._model(params)
            decoder = needed(model.mae_decoder, "model.mae_decoder")
            return decoder(model.audio(visible), visible, dropped)

        return run(params, visible, dropped)
