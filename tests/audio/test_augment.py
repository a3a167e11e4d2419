"""Augmentation against NumPy, and its statistics."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio import augment_ops as ops
from alm_jax.audio.augment import (
    AugmentConfig,
    augment_spectrogram,
    augment_waveform,
    change_speed,
)

B, S, T, F = 6, 4000, 50, 32
RNG = np.random.default_rng(0)
LENGTH = np.array([4000, 3999, 2500, 1000, 37, 1], np.int32)
AUDIO = (RNG.standard_normal((B, S)) * 0.1 * (np.arange(S) < LENGTH[:, None])).astype(np.float32)
FRAMES = np.array([50, 49, 30, 12, 2, 1], np.int32)
PAD = 0.467
MEL = RNG.standard_normal((B, T, F)).astype(np.float32)
MEL[np.arange(T) >= FRAMES[:, None]] = PAD

WAVEFORM_ALL = AugmentConfig(
    time_roll=1.0, gain_db=6.0, background_probability=0.7, noise_probability=0.7
)
SPECTROGRAM_ALL = AugmentConfig(
    time_stretch=0.2,
    frequency_shift_bins=3.0,
    frequency_scale=0.1,
    band_gain=0.5,
    time_masks=2,
    time_mask_frames=8,
    time_mask_fraction=0.3,
    frequency_masks=2,
    frequency_mask_bins=6,
)


def keys(count: int = B, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


waveform = jax.jit(augment_waveform, static_argnums=3)
spectrogram = jax.jit(augment_spectrogram, static_argnums=3, static_argnames="padding_value")


def all_waveform(keys, audio, length):
    return waveform(keys, audio, length, WAVEFORM_ALL)


def all_spectrogram(keys, mel, frames):
    return spectrogram(keys, mel, frames, SPECTROGRAM_ALL, padding_value=PAD)


def test_defaults_change_nothing():
    """If this fails, a config without augmentation trains on altered sound."""
    off = AugmentConfig()
    assert augment_waveform(keys(), AUDIO, LENGTH, off) is AUDIO
    mel, frames = augment_spectrogram(keys(), MEL, FRAMES, off)
    assert mel is MEL
    assert frames is FRAMES


def test_speed_changes_pitch_and_length_alike():
    """If this fails, speed perturbation plays noise, or claims silence to be sound."""
    rate = jnp.array([1.1, 0.9, 1.0])
    time = np.arange(8000)
    sine = np.sin(2 * np.pi * 0.05 * time).astype(np.float32)
    audio = jnp.array(np.stack([sine * (time < n) for n in (8000, 4000, 5000)]))
    out, length = jax.jit(ops.resample)(audio, jnp.array([8000, 4000, 5000]), rate)
    np.testing.assert_array_equal(length, [7272, 4444, 5000])
    for row, n in enumerate(length.tolist()):
        expected = np.sin(2 * np.pi * 0.05 * float(rate[row]) * np.arange(n))
        # Cubic interpolation of 20 samples a period; beyond the last two samples it is held.
        np.testing.assert_allclose(out[row, : n - 2], expected[:-2], atol=3e-3)
        assert not np.any(out[row, n:])
    np.testing.assert_array_equal(out[2], audio[2])
    cfg = AugmentConfig(speed=0.1)
    made, lengths = change_speed(keys(), AUDIO, LENGTH, cfg)
    assert np.all(lengths >= np.floor((LENGTH - 1) / 1.1)) and np.all(lengths <= AUDIO.shape[1])
    assert len(set((np.asarray(lengths) / np.asarray(LENGTH)).round(4).tolist())) > 1
    assert made.shape == AUDIO.shape
    same, kept = change_speed(keys(), AUDIO, LENGTH, AugmentConfig())
    assert same is AUDIO and kept is LENGTH


def test_same_keys_same_result_other_keys_another():
    """If this fails, a resumed run sees other data, or every epoch sees the same augmentation."""
    first = all_waveform(keys(), AUDIO, LENGTH)
    np.testing.assert_array_equal(first, all_waveform(keys(), AUDIO, LENGTH))
    other = all_waveform(keys(seed=1), AUDIO, LENGTH)
    assert all(not np.allclose(a, b) for a, b in zip(first[:4], other[:4], strict=True))
    mel, frames = all_spectrogram(keys(), MEL, FRAMES)
    again, _ = all_spectrogram(keys(), MEL, FRAMES)
    np.testing.assert_array_equal(mel, again)
    other, _ = all_spectrogram(keys(seed=1), MEL, FRAMES)
    assert not np.allclose(mel[0], other[0])
    assert frames.dtype == FRAMES.dtype


def test_rows_do_not_touch_each_other():
    """If this fails, a clip's augmentation depends on the batch it lands in."""
    cfg = dataclasses.replace(WAVEFORM_ALL, background_probability=0.0)
    batch = waveform(keys(), AUDIO, LENGTH, cfg)
    mels, frames = all_spectrogram(keys(), MEL, FRAMES)
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = waveform(keys()[order], AUDIO[order], LENGTH[order], cfg)
    np.testing.assert_allclose(shuffled, np.asarray(batch)[order], atol=1e-6)
    shuffled, new = all_spectrogram(keys()[order], MEL[order], FRAMES[order])
    np.testing.assert_allclose(shuffled, np.asarray(mels)[order], atol=1e-5)
    np.testing.assert_array_equal(new, np.asarray(frames)[order])


def test_background_is_the_next_row_only():
    """If this fails, clips are mixed with a clip the documentation does not name."""
    cfg = AugmentConfig(background_probability=1.0)
    before = np.asarray(waveform(keys(), AUDIO, LENGTH, cfg))
    changed = AUDIO.copy()
    changed[2, :2500] *= np.linspace(1, -1, 2500)
    after = np.asarray(waveform(keys(), changed, LENGTH, cfg))
    np.testing.assert_array_equal((before != after).any(axis=1), [False, True, True] + [False] * 3)


def test_nothing_leaks_into_the_padding():
    """If this fails, padding carries sound, and embeddings depend on how long the batch is."""
    audio = np.asarray(all_waveform(keys(), AUDIO, LENGTH))
    assert np.isfinite(audio).all()
    assert not audio[np.arange(S) >= LENGTH[:, None]].any()
    mel, frames = (np.asarray(x) for x in all_spectrogram(keys(), MEL, FRAMES))
    assert np.isfinite(mel).all()
    np.testing.assert_array_equal(mel[np.arange(T) >= frames[:, None]], np.float32(PAD))
    assert (frames >= 1).all()
    assert (frames <= T).all()


def test_roll_equals_numpy_on_the_valid_part():
    """If this fails, rolled clips lose or repeat samples."""
    shift = np.array([1, -7, 12345, 500, 36, 3])
    rolled = np.asarray(ops.roll_valid(AUDIO, LENGTH, shift))
    for row, clip, n, by in zip(rolled, AUDIO, LENGTH, shift, strict=True):
        np.testing.assert_array_equal(row[:n], np.roll(clip[:n], by))
        assert not row[n:].any()


@pytest.mark.parametrize(("strength", "reach"), [(1.0, 500), (0.2, 100)])
def test_roll_covers_its_range(strength: float, reach: int):
    """If this fails, `time_roll` shifts less (or more) than the config says."""
    count = 400
    audio = np.zeros((count, 1200), np.float32)
    audio[:, 0] = 1.0
    length = np.full(count, 1000, np.int32)
    cfg = AugmentConfig(time_roll=strength)
    rolled = np.asarray(waveform(keys(count), audio, length, cfg))
    place = rolled.argmax(axis=1)
    shift = np.where(place > 500, place - 1000, place)
    assert np.abs(shift).max() <= reach
    assert np.abs(shift).max() > 0.95 * reach
    assert abs(shift.mean()) < 4 * reach / np.sqrt(3 * count)


def test_gain_is_uniform_in_decibels():
    """If this fails, gain augmentation is biased or out of range."""
    count = 500
    audio = np.ones((count, 4), np.float32)
    out = waveform(keys(count), audio, np.full(count, 4, np.int32), AugmentConfig(gain_db=12.0))
    gain = 20 * np.log10(np.asarray(out)[:, 0])
    assert np.abs(gain).max() <= 12.0 + 1e-3
    assert abs(gain.mean()) < 4 * 12 / np.sqrt(3 * count)
    assert gain.std() == pytest.approx(12 / np.sqrt(3), rel=0.1)


def test_gain_of_audiomae():
    """If this fails, AudioMAE's recipe hears its clips louder, softer or all alike."""
    count = 500
    audio = np.ones((count, 4), np.float32)
    out = waveform(keys(count), audio, np.full(count, 3, np.int32), AugmentConfig(gain_beta=10.0))
    gain = np.asarray(out)[:, 0]
    np.testing.assert_array_equal(out[:, 2], gain)
    assert not np.asarray(out)[:, 3].any()
    deviation = 1 / np.sqrt(4 * 21)  # of Beta(10, 10)
    assert abs(gain.mean() - 1) < 4 * deviation / np.sqrt(count)
    assert gain.std() == pytest.approx(deviation, rel=0.15)
    assert 0.5 < gain.min() < gain.max() < 1.5


def test_mix_has_the_wanted_level():
    """If this fails, backgrounds drown the sound that the caption describes."""
    snr = np.array([0.0, 10.0, -5.0, 20.0, 3.0, 6.0], np.float32)
    other, other_length = np.roll(AUDIO, -1, axis=0), np.roll(LENGTH, -1)
    mixed = np.asarray(ops.mix_at_snr(AUDIO, LENGTH, other, other_length, snr))
    for b, n in enumerate(LENGTH):
        m = other_length[b]
        clip, background = AUDIO[b, :n].astype(np.float64), other[b].astype(np.float64)
        ratio = np.mean(clip**2) / np.mean(background[:m] ** 2) * 10 ** (-snr[b] / 10)
        np.testing.assert_allclose(
            mixed[b, :n], clip + np.sqrt(ratio) * background[:n], rtol=1e-4, atol=1e-6
        )


def test_silence_is_never_amplified():
    """If this fails, mixing with or into a silent clip gives NaN or noise at full scale."""
    silent = np.zeros_like(AUDIO)
    snr = np.zeros(B, np.float32)
    np.testing.assert_array_equal(ops.mix_at_snr(AUDIO, LENGTH, silent, LENGTH, snr), AUDIO)
    assert not np.asarray(ops.mix_at_snr(silent, LENGTH, AUDIO, LENGTH, snr)).any()


def test_mixing_happens_as_often_as_asked():
    """If this fails, `noise_probability` and `background_probability` mean something else."""
    count = 600
    audio = np.random.default_rng(1).standard_normal((count, 64)).astype(np.float32)
    length = np.full(count, 64, np.int32)
    for field in ("noise_probability", "background_probability"):
        cfg = AugmentConfig(**{field: 0.25})
        out = np.asarray(waveform(keys(count), audio, length, cfg))
        share = (out != audio).any(axis=1).mean()
        assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / count))


def test_noise_level_lies_in_the_configured_range():
    """If this fails, noise augmentation is louder than configured."""
    count, samples = 300, 2000
    t = np.arange(samples)
    audio = np.tile(np.sin(t * 0.3), (count, 1)).astype(np.float32)
    cfg = AugmentConfig(noise_probability=1.0, noise_snr_db=(10.0, 30.0))
    length = np.full(count, samples, np.int32)
    out = np.asarray(waveform(keys(count), audio, length, cfg))
    snr = 10 * np.log10((audio**2).mean(axis=1) / ((out - audio) ** 2).mean(axis=1))
    assert snr.min() > 9.7
    assert snr.max() < 30.3
    assert snr.mean() == pytest.approx(20.0, abs=4 * 20 / np.sqrt(12 * count))


def test_noise_is_white():
    """If this fails, the noise has a colour or a pattern that a model can learn to ignore."""
    noise = np.asarray(ops.white_noise(keys(64), 4097), np.float64)
    assert noise.shape == (64, 4097)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert noise.var() == pytest.approx(1.0, abs=0.01)
    spectrum = (np.abs(np.fft.rfft(noise[:, :4096], axis=1)) ** 2 / 4096).mean(axis=0)
    np.testing.assert_allclose(spectrum[1:-1], 1.0, atol=6 / np.sqrt(64))
    across_rows = np.corrcoef(noise) - np.eye(64)
    assert np.abs(across_rows).max() < 6 / np.sqrt(4097)


@pytest.mark.parametrize("rate", [0.5, 0.83, 1.0, 1.21, 3.0])
def test_time_stretch_equals_numpy_interp(rate: float):
    """If this fails, stretched spectrograms are distorted, or their valid length is wrong."""
    out, new = ops.time_stretch(MEL, FRAMES, np.full(B, rate, np.float32), padding_value=PAD)
    for b, n in enumerate(FRAMES):
        count = min(T, int(np.floor((n - 1) / rate + 1e-4)) + 1)
        assert new[b] == count
        position = np.arange(count) * rate
        for f in (0, 7, F - 1):
            expected = np.interp(position, np.arange(n), MEL[b, :n, f])
            np.testing.assert_allclose(out[b, :count, f], expected, atol=2e-5)
        np.testing.assert_array_equal(out[b, count:], np.float32(PAD))
    if rate == 1.0:
        np.testing.assert_array_equal(out, MEL)


def test_time_stretch_of_no_frames_stays_empty():
    """If this fails, a clip shorter than one window turns into a frame of padding."""
    _, new = ops.time_stretch(MEL, np.zeros(B, np.int32), np.full(B, 0.5, np.float32))
    assert not np.asarray(new).any()


def test_stretch_rates_are_symmetric():
    """If this fails, stretching makes clips longer (or shorter) on average."""
    count = 400
    mel, frames = np.zeros((count, 300, 1), np.float32), np.full(count, 200, np.int32)
    _, new = spectrogram(keys(count), mel, frames, AugmentConfig(time_stretch=0.25))
    log_ratio = np.log(np.asarray(new) / 200)
    assert np.abs(log_ratio).max() <= np.log(1.25) + 0.01
    assert np.abs(log_ratio).max() > 0.9 * np.log(1.25)
    assert abs(log_ratio.mean()) < 4 * np.log(1.25) / np.sqrt(3 * count) + 0.005


def test_frequency_warp_equals_numpy_interp():
    """If this fails, pitch perturbation smears or misplaces the bands."""
    shift = np.array([0.0, 2.0, -3.0, 0.5, 1.7, -40.0], np.float32)
    scale = np.array([1.0, 1.0, 1.0, 1.0, 1.1, 0.9], np.float32)
    out = np.asarray(ops.frequency_warp(MEL, shift, scale))
    np.testing.assert_array_equal(out[0], MEL[0])
    np.testing.assert_allclose(out[1][:, 2:], MEL[1][:, :-2], atol=1e-6)
    for b in range(B):
        position = (np.arange(F) - shift[b]) / scale[b]
        for t in (0, 20, T - 1):
            expected = np.interp(position, np.arange(F), MEL[b, t])
            np.testing.assert_allclose(out[b, t], expected, atol=2e-5)


def test_band_gain_is_a_bounded_curve_for_all_frames():
    """If this fails, the equaliser flickers from frame to frame or leaves its range."""
    frames = np.full(200, 5, np.int32)
    change, _ = spectrogram(keys(200), jnp.zeros((200, 5, F)), frames, AugmentConfig(band_gain=0.5))
    change = np.asarray(change)
    assert np.ptp(change, axis=1).max() == 0
    curves = change[:, 0]
    assert np.abs(curves).max() <= 0.5
    assert np.abs(curves.mean(axis=0)).max() < 4 * 0.5 / np.sqrt(3 * 200)
    corners = curves[:, [0, F - 1]]
    assert corners.std(axis=0) == pytest.approx(0.5 / np.sqrt(3), rel=0.15)
    heights = np.array([[0.1, -0.4, 0.3, 0.2]], np.float32)
    shape = np.asarray(ops.band_gain(jnp.zeros((1, 1, F)), heights))[0, 0]
    expected = np.interp(np.linspace(0, 3, F), np.arange(4), heights[0])
    np.testing.assert_allclose(shape, expected, atol=1e-6)


def test_masks_stay_inside_the_clip_and_their_limits():
    """If this fails, masks fall on padding (too weak) or wipe out whole clips."""
    count = 300
    frames = np.tile(np.array([50, 20, 7], np.int32), count // 3)
    inside = np.arange(T) < frames[:, None]
    cfg = AugmentConfig(
        time_masks=1,
        time_mask_frames=8,
        time_mask_fraction=0.3,
        frequency_masks=1,
        frequency_mask_bins=5,
        mask_value=-2.0,
    )
    masked, _ = spectrogram(keys(count), jnp.ones((count, T, F)), frames, cfg)
    masked = np.asarray(masked)
    assert not masked[~inside].any()
    assert set(np.unique(masked[inside])) == {-2.0, 1.0}
    hidden = masked == -2.0
    rows = hidden.all(axis=2)
    columns = (hidden | ~inside[:, :, None]).all(axis=1)
    np.testing.assert_array_equal(
        hidden, (rows[:, :, None] | columns[:, None, :]) & inside[:, :, None]
    )
    widest = np.floor(np.minimum(8, 0.3 * frames))
    widths = rows.sum(axis=1)
    for size in np.unique(frames):
        most = widest[frames == size][0]
        assert set(widths[frames == size]) == set(range(int(most) + 1))
        assert widths[frames == size].mean() == pytest.approx(most / 2, abs=most / 4 + 0.1)
    assert set(columns.sum(axis=1)) == set(range(6))
    assert rows[frames == 50].any(axis=0).all(), "some frames are never masked"
    assert columns.any(axis=0).all(), "some bins are never masked"


@pytest.mark.parametrize(
    "fields",
    [
        {"time_roll": 1.5},
        {"noise_probability": -0.1},
        {"background_snr_db": (20.0, 5.0)},
        {"time_masks": -1},
        {"gain_db": -6.0},
        {"band_gain_points": 1},
    ],
)
def test_bad_config_names_the_field(fields: dict):
    """If this fails, an impossible strength trains silently."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        AugmentConfig(**fields)


def test_lists_from_a_config_file_are_accepted():
    """If this fails, `--config.augment.noise_snr_db=[5,10]` crashes inside jit."""
    assert hash(AugmentConfig(noise_snr_db=[5.0, 10.0])) == hash(
        AugmentConfig(noise_snr_db=(5.0, 10.0))
    )


def test_a_sharded_batch_is_augmented_in_place():
    """If this fails, results change with the number of devices, or the batch is gathered."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from alm_jax.audio.augment import AugmentConfig, augment_spectrogram, augment_waveform
rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
cfg = AugmentConfig(time_roll=1.0, background_probability=0.7, noise_probability=0.7,
                    time_stretch=0.2, frequency_shift_bins=3.0, time_masks=2)
audio = np.random.default_rng(0).standard_normal((8, 3000)).astype(np.float32)
mel = np.random.default_rng(1).standard_normal((8, 40, 16)).astype(np.float32)
length, frames = np.arange(3000, 2200, -100), np.arange(40, 32, -1)
keys = jax.random.split(jax.random.key(0), 8)
def both(keys, audio, length, mel, frames):
    out = augment_waveform(keys, audio, length, cfg)
    return (out, *augment_spectrogram(keys, mel, frames, cfg))
args = (keys, audio, length, mel, frames)
compiled = jax.jit(both, in_shardings=(rows,) * 5, out_shardings=rows).lower(*args).compile()
for word in ("all-gather", "all-to-all", "all-reduce"):
    assert word not in compiled.as_text(), word
spread_args = jax.device_put(args, rows)
for spread, alone in zip(compiled(*spread_args), jax.jit(both)(*args)):
    np.testing.assert_allclose(spread, alone, atol=1e-5)
"""
    env = dict(
        os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], env=env, cwd=root, check=True, timeout=300)
