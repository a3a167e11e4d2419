"""What objectives read of a batch, each value computed once and only if an objective reads it.

The properties are evaluated while the step is traced, so an objective that is not in the config
costs nothing, and two objectives that read the same hidden states share one pass.
Shapes: B batch, S samples, T frames, F mel bins, N patches, N' audio states, L tokens, D width,
J joint width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import cached_property

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alm_jax.audio.augment import (
    AugmentConfig,
    augment_spectrogram,
    augment_waveform,
    change_speed,
)
from alm_jax.audio.frontend import LogMelConfig, log_mel, num_frames, pcm_to_float
from alm_jax.audio.masking import MaskingConfig, View, example_keys, mask_view
from alm_jax.audio.mixup import mix_labels, mix_shares, mix_waveforms
from alm_jax.audio.packing import PackingConfig, check_packing, pack_view
from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError
from alm_jax.models.audio_text import AudioTextModel, needed
from alm_jax.models.towers import tower_patches


def spectrogram(
    audio: jax.Array, audio_length: jax.Array, frontend: LogMelConfig
) -> tuple[jax.Array, jax.Array]:
    """Log-mel [B, T, F] and frame counts [B] of float32 audio [B, S] in [-1, 1]."""
    frames = jnp.maximum(num_frames(audio_length, frontend), 1)
    return log_mel(audio, frontend, length=audio_length), frames


class Forward:
    """The values that objectives share; see the module docstring."""

    def __init__(
        self,
        model: AudioTextModel,
        batch: Mapping[str, jax.Array],
        config: ConfigDict,
        key: jax.Array | None,
        *,
        noise: bool = True,
        part: jax.Array | None = None,
    ):
        """Prepares a pass; nothing is computed yet.

        Args:
          model: the model with its current parameters.
          batch: device arrays, see `input_pipeline.loader`.
          config: the experiment.
          key: the step's PRNG key; None means evaluation: no masking, dropout or augmentation.
          noise: False leaves masking as the only thing that is drawn, for losses of held-out clips.
          part: number of this part of the step's batch, if it is computed in parts: what is drawn
            for all rows together then differs between them.
        """
        self.model = model
        self.batch = batch
        self.config = config
        self.frontend = LogMelConfig(**config.frontend)
        self.masking = MaskingConfig(**config.masking)
        self.packing = PackingConfig(**config.get("packing", {}))
        self.packed: dict[str, jax.Array] = {}  # see `pack_view`; filled when `view` is read
        if self.packing.share:
            check_packing(config)
        self.key = key
        self.noise = noise
        self.part = part

    def _step_key(self, name: str) -> jax.Array | None:
        if self.key is None or not (self.noise or name == "masking"):
            return None
        return jax.random.fold_in(self.key, zlib.crc32(name.encode()))

    def key_for(self, name: str) -> jax.Array | None:
        """A key for one use, independent of the other uses; None where nothing may be drawn."""
        key = self._step_key(name)
        return key if key is None or self.part is None else jax.random.fold_in(key, self.part)

    def example_keys(self, name: str) -> jax.Array:
        """[B] keys for one use; each depends on the step and the example's id alone."""
        key = self._step_key(name)
        if key is None:
            raise ValueError(f"nothing may be drawn for {name!r} in evaluation: there is no key")
        return example_keys(key, self.batch["example_id"])

    @cached_property
    def mel(self) -> tuple[jax.Array, jax.Array]:
        """Log-mel [B, T, F] float32 (augmented in training) and frame counts [B]."""
        audio, length = pcm_to_float(self.batch["audio"]), self.batch["audio_length"]
        if self.key_for("waveform") is None:
            return spectrogram(audio, length, self.frontend)
        augment = AugmentConfig(**self.config.augment)
        audio, length = change_speed(self.example_keys("speed"), audio, length, augment)
        audio = augment_waveform(self.example_keys("waveform"), audio, length, augment)
        if self.mix_share is not None:
            other, other_length = pcm_to_float(self.batch["mix_audio"]), self.batch["mix_length"]
            present = jnp.maximum(other_length, 1)
            other = augment_waveform(self.example_keys("mix"), other, present, augment)
            audio = mix_waveforms(audio, length, other, other_length, self.mix_share)
        mel, frames = spectrogram(audio, length, self.frontend)
        keys = self.example_keys("spectrogram")
        return augment_spectrogram(keys, mel, frames, augment, padding_value=self.frontend.silence)

    @cached_property
    def mix_share(self) -> jax.Array | None:
        """[B] share of each row's own clip in what is heard; None without mixup."""
        if "mix_audio" not in self.batch or self.key_for("mix_share") is None:
            return None
        beta = AugmentConfig(**self.config.augment).mixup_beta
        return mix_shares(self.example_keys("mix_share"), self.batch["mix_length"], beta)

    @cached_property
    def labels(self) -> jax.Array:
        """[B, Y] float32 in 0..1: how much each class applies to each row's sound."""
        if "labels" not in self.batch:
            raise UserError(
                "objectives.classification needs labels: set data.labels to the feature of the "
                "dataset that holds the class names, such as 'labels'"
            )
        labels = self.batch["labels"].astype(jnp.float32)
        if self.mix_share is None:
            return labels
        return mix_labels(labels, self.batch["mix_labels"], self.mix_share)

    @cached_property
    def patches(self) -> Patches:
        """All patches of each clip."""
        mel, frames = self.mel
        keys = None if self.key_for("patches") is None else self.example_keys("patches")
        return tower_patches(mel, frames, self.config, self.frontend, keys)

    @cached_property
    def view(self) -> View:
        """Visible and dropped patches; in evaluation everything is visible."""
        if self.key is None:
            return View(self.patches, None)
        view = mask_view(self.example_keys("masking"), self.patches, self.masking)
        if not (self.packing.share and self.noise):
            return view
        class_tokens = int(self.config.model.audio.get("class_token", False))
        view, self.packed = pack_view(view, self.packing, class_tokens)
        return view

    @cached_property
    def audio_hidden(self) -> jax.Array:
        """[B, N', D] states of the visible patches."""
        return self.model.audio(self.view.visible, key=self.key_for("audio"))

    @cached_property
    def audio_mask(self) -> jax.Array:
        """[B, N'] bool, True for the states of `audio_hidden` that belong to the clip."""
        return self.model.audio.state_mask(self.view.visible)

    @cached_property
    def audio_embedding(self) -> jax.Array:
        """[B, J] unit-norm float32."""
        return self.model.audio_embedding(self.audio_hidden, self.audio_mask)

    @cached_property
    def text_hidden(self) -> jax.Array:
        """[B, L, D] states of the tokens."""
        text = needed(self.model.text, "model.text")
        return text(self.batch["text"], self.batch["text_mask"], key=self.key_for("text"))

    @cached_property
    def text_embedding(self) -> jax.Array:
        """[B, J] unit-norm float32."""
        return self.model.text_embedding(self.text_hidden, self.batch["text_mask"])
