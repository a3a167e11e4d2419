"""Augmentation of waveforms and log-mel spectrograms inside jit.

Every random choice comes from the example's own key, so a clip is augmented the same way on any
number of devices and after a resume. Everything has static shapes and honours the valid length;
what is off costs nothing. Rows do not touch each other, except that `background_probability` mixes
a clip with the next row of the batch.

Shapes: B batch, S samples, T frames, F mel bins.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from alm_jax.audio import augment_ops as ops


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Strength of every augmentation; the defaults are all off.

    Attributes:
        speed: playback rate drawn log-uniformly in [1 / (1 + x), 1 + x], pitch and tempo alike, as
            by resampling (Ko et al. 2015).
        time_roll: rotate the valid samples by up to time_roll * length / 2 either way, 0..1.
        gain_db: gain drawn uniformly in [-gain_db, gain_db] dB.
        gain_beta: factor 0.5 + x with x from Beta(gain_beta, gain_beta), 0 is off (AudioMAE: 10).
        background_probability: chance that the next row of the batch is added to a clip.
        background_snr_db: (lowest, highest) level of the clip over that background, in dB.
        noise_probability: chance that white noise is added.
        noise_snr_db: (lowest, highest) level of the clip over that noise, in dB.
        time_stretch: playback rate drawn log-uniformly in [1 / (1 + x), 1 + x], pitch unchanged.
        frequency_shift_bins: shift along the mel axis drawn in [-x, x] bins (pitch).
        frequency_scale: scale of the mel axis drawn log-uniformly in [1 / (1 + x), 1 + x]
            (vocal-tract length).
        band_gain: largest change of a band, in the spectrogram's own units, by a random curve that
            is linear between `band_gain_points` random heights (FilterAugment, Nam et al. 2022).
        band_gain_points: number of heights, >= 2.
        time_masks: number of time masks (SpecAugment, Park et al. 2019).
        time_mask_frames: width of a time mask is drawn in 0..time_mask_frames.
        time_mask_fraction: and is at most this fraction of the valid frames.
        frequency_masks: number of frequency masks.
        frequency_mask_bins: width of a frequency mask is drawn in 0..frequency_mask_bins.
        mask_value: what masked cells hold.
        mixup_beta: of clips that the loader gives a second one (`data.mixup_probability`), the
            share of the first is drawn from Beta(mixup_beta, mixup_beta); see
            `alm_jax.audio.mixup`.
    """

    speed: float = 0.0
    time_roll: float = 0.0
    gain_db: float = 0.0
    gain_beta: float = 0.0
    background_probability: float = 0.0
    background_snr_db: tuple[float, float] = (5.0, 20.0)
    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (10.0, 40.0)
    time_stretch: float = 0.0
    frequency_shift_bins: float = 0.0
    frequency_scale: float = 0.0
    band_gain: float = 0.0
    band_gain_points: int = 4
    time_masks: int = 0
    time_mask_frames: int = 32
    time_mask_fraction: float = 0.2
    frequency_masks: int = 0
    frequency_mask_bins: int = 16
    mask_value: float = 0.0
    mixup_beta: float = 10.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: names the field, its value and the accepted range.
        """
        for name in ("background_snr_db", "noise_snr_db"):
            limits = tuple(getattr(self, name))
            if len(limits) != 2 or limits[0] > limits[1]:
                raise ValueError(f"AugmentConfig.{name}={limits} must be (lowest, highest) in dB")
            object.__setattr__(self, name, limits)  # a list from a config would not be hashable
        for name in (
            "time_roll",
            "background_probability",
            "noise_probability",
            "time_mask_fraction",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"AugmentConfig.{name}={getattr(self, name)} must lie in 0..1")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and field.name != "mask_value" and value < 0:
                raise ValueError(f"AugmentConfig.{field.name}={value} must not be negative")
        if not self.mixup_beta > 0:
            raise ValueError(f"AugmentConfig.mixup_beta={self.mixup_beta} must be above 0")
        if self.band_gain_points < 2:
            raise ValueError(
                f"AugmentConfig.band_gain_points={self.band_gain_points} must be at least 2"
            )


def change_speed(
    keys: Array, audio: Array, length: Array, cfg: AugmentConfig
) -> tuple[Array, Array]:
    """Plays waveforms faster or slower; what no longer fits is cut off.

    Args:
        keys: typed PRNG keys [B], one an example.
        audio: float32 [B, S] waveform, zero past `length`.
        length: int [B] valid samples, 1..S.
        cfg: strengths; only `speed` is read.

    Returns:
        float32 [B, S] and the new int [B] number of valid samples.
    """
    if not cfg.speed:
        return audio, length
    limit = math.log1p(cfg.speed)
    return ops.resample(audio, length, jnp.exp(_between(_draws(keys, 1)[:, 0], -limit, limit)))


def augment_waveform(keys: Array, audio: Array, length: Array, cfg: AugmentConfig) -> Array:
    """Rolls, scales, mixes and adds noise, in this order.

    Args:
        keys: typed PRNG keys [B], one an example (`jax.random.fold_in(key, example)`).
        audio: float32 [B, S] waveform.
        length: int [B] valid samples, 1..S.
        cfg: strengths.

    Returns:
        float32 [B, S]; zero past `length` wherever an augmentation is on. Samples may exceed 1.
    """
    draws = _draws(keys, 6)
    if cfg.time_roll:
        shift = jnp.round((draws[:, 0] - 0.5) * cfg.time_roll * length).astype(jnp.int32)
        audio = ops.roll_valid(audio, length, shift)
    if cfg.gain_db:
        gain = 10.0 ** (_between(draws[:, 1], -cfg.gain_db, cfg.gain_db) / 20.0)
        audio = ops.zero_padding(audio * gain[:, None], length)
    if cfg.gain_beta:
        gain_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        beta = jax.vmap(lambda key: jax.random.beta(key, cfg.gain_beta, cfg.gain_beta))(gain_keys)
        audio = ops.zero_padding(audio * (0.5 + beta)[:, None], length)
    if cfg.background_probability:
        # Rows of a batch are already in random order, so the neighbour is a random clip. Taking it
        # by rotation moves one row between devices; a random permutation would move them all.
        other, other_length = jnp.roll(audio, -1, axis=0), jnp.roll(length, -1)
        snr = _between(draws[:, 2], *cfg.background_snr_db)
        snr = jnp.where(draws[:, 3] < cfg.background_probability, snr, jnp.inf)
        audio = ops.mix_at_snr(audio, length, other, other_length, snr)
    if cfg.noise_probability:
        noise_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        noise = ops.white_noise(noise_keys, audio.shape[1])
        snr = _between(draws[:, 4], *cfg.noise_snr_db)
        snr = jnp.where(draws[:, 5] < cfg.noise_probability, snr, jnp.inf)
        full = jnp.full_like(length, audio.shape[1])
        audio = ops.mix_at_snr(audio, length, noise, full, snr)
    return audio


def augment_spectrogram(
    keys: Array,
    mel: Array,
    num_frames: Array,
    cfg: AugmentConfig,
    *,
    padding_value: float = 0.0,
) -> tuple[Array, Array]:
    """Stretches time, warps frequency, tilts bands and masks, in this order.

    Args:
        keys: typed PRNG keys [B], one an example.
        mel: float32 [B, T, F] normalised log-mel spectrogram.
        num_frames: int [B] valid frames.
        cfg: strengths.
        padding_value: what frames past `num_frames` hold, here and in the result
            (`front_end.normalise(front_end.padding_log_value)`).

    Returns:
        float32 [B, T, F] and the new int [B] number of valid frames (only time_stretch changes it).
    """
    batch, total, bins = mel.shape
    runs = 2 * (cfg.time_masks + cfg.frequency_masks)
    draws, heights, runs_draws = jnp.split(
        _draws(keys, 3 + cfg.band_gain_points + runs), [3, 3 + cfg.band_gain_points], axis=1
    )
    if cfg.time_stretch:
        limit = math.log1p(cfg.time_stretch)
        rate = jnp.exp(_between(draws[:, 0], -limit, limit))
        mel, num_frames = ops.time_stretch(mel, num_frames, rate, padding_value=padding_value)
    if cfg.frequency_shift_bins or cfg.frequency_scale:
        limit = math.log1p(cfg.frequency_scale)
        scale = jnp.exp(_between(draws[:, 2], -limit, limit))
        shift = _between(draws[:, 1], -cfg.frequency_shift_bins, cfg.frequency_shift_bins)
        mel = ops.frequency_warp(mel, shift, scale)
    if cfg.band_gain:
        mel = ops.band_gain(mel, _between(heights, -cfg.band_gain, cfg.band_gain))
    time_draws, frequency_draws = jnp.split(
        runs_draws.reshape(batch, 2, -1), [cfg.time_masks], axis=2
    )
    if cfg.time_masks:
        widest = jnp.minimum(cfg.time_mask_frames, cfg.time_mask_fraction * num_frames)
        hidden = ops.random_runs(time_draws, widest, num_frames, total)
        mel = jnp.where(hidden[:, :, None], cfg.mask_value, mel)
    if cfg.frequency_masks:
        every = jnp.full((batch,), bins)
        widest = jnp.minimum(cfg.frequency_mask_bins, every)
        hidden = ops.random_runs(frequency_draws, widest, every, bins)
        mel = jnp.where(hidden[:, None, :], cfg.mask_value, mel)
    if cfg.band_gain or cfg.frequency_masks:
        valid = jnp.arange(total) < num_frames[:, None]
        mel = jnp.where(valid[..., None], mel, padding_value)
    return mel, num_frames


def _draws(keys: Array, count: int) -> Array:
    """Uniform draws on 0..1, float32 [B, count], each row from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def _between(draw: Array, low: float, high: float) -> Array:
    return low + (high - low) * draw
